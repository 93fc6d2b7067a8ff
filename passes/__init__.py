"""The passes that come with graphgrow: one file each, found through this table."""

from typing import TYPE_CHECKING, Any

TABLE = {
    "add-heads": "passes.add_heads:AddHeads",
    "add-kv-heads": "passes.add_kv_heads:AddKvHeads",
    "deepen": "passes.deepen:Deepen",
    "drop-blocks": "passes.drop_blocks:DropBlocks",
    "duplicate-experts": "passes.duplicate_experts:DuplicateExperts",
    "factorize": "passes.factorize:Factorize",
    "grow-vocab": "passes.grow_vocab:GrowVocab",
    "merge-factors": "passes.merge_factors:MergeFactors",
    "permute-for-nm": "passes.permute_for_nm:PermuteForNm",
    "prune-axis": "passes.prune_axis:PruneAxis",
    "sparsify": "passes.sparsify:Sparsify",
    "split-kv-heads": "passes.split_kv_heads:SplitKvHeads",
    "supar": "passes.supar:Supar",
    "undo": "passes.undo:Undo",
    "upcycle": "passes.upcycle:Upcycle",
    "widen": "passes.widen:Widen",
    "widen-experts": "passes.widen_experts:WidenExperts",
    "widen-hidden": "passes.widen_hidden:WidenHidden",
    "widen-keys": "passes.widen_keys:WidenKeys",
    "widen-values": "passes.widen_values:WidenValues",
}

if TYPE_CHECKING:
    from passes.add_heads import AddHeads
    from passes.add_kv_heads import AddKvHeads
    from passes.deepen import Deepen
    from passes.drop_blocks import DropBlocks
    from passes.duplicate_experts import DuplicateExperts
    from passes.factorize import Factorize
    from passes.grow_vocab import GrowVocab
    from passes.merge_factors import MergeFactors
    from passes.permute_for_nm import PermuteForNm
    from passes.prune_axis import PruneAxis
    from passes.sparsify import Sparsify
    from passes.split_kv_heads import SplitKvHeads
    from passes.supar import Supar
    from passes.undo import Undo
    from passes.upcycle import Upcycle
    from passes.widen import Widen
    from passes.widen_experts import WidenExperts
    from passes.widen_hidden import WidenHidden
    from passes.widen_keys import WidenKeys
    from passes.widen_values import WidenValues

__all__ = [
    "TABLE", "AddHeads", "AddKvHeads", "Deepen", "DropBlocks", "DuplicateExperts", "Factorize", "GrowVocab",
    "MergeFactors", "PermuteForNm", "PruneAxis", "Sparsify", "SplitKvHeads", "Supar", "Undo", "Upcycle", "Widen",
    "WidenExperts", "WidenHidden", "WidenKeys", "WidenValues",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """`from passes import Widen` imports the file of that pass only."""
    from importlib import import_module

    for target in TABLE.values():
        module, _, attribute = target.partition(":")
        if attribute == name:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'passes' has no attribute {name!r}")
