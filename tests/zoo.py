"""Small real models: the one table that every test walks. Sizes differ wherever the class lets them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from tests import handwritten as hw

Inputs = dict[str, Tensor]
Build = Callable[[], tuple[nn.Module, Inputs]]

BATCH, LENGTH, VOCAB, CLASSES = 2, 7, 101, 9


@dataclass(frozen=True)
class Case:
    name: str
    build: Build  # a fresh, seeded model in train mode, and keyword example inputs
    listed: bool  # named by the issue; the others guard against code that knows the list


def tokens(*names: str, mask: bool = False, length: int = LENGTH) -> Callable[[], Inputs]:
    """Token identifiers (batch, length); with `mask`, the last two of the second row are padding."""

    def make() -> Inputs:
        inputs = {name: torch.randint(3, VOCAB, (BATCH, length)) for name in names or ("input_ids",)}
        if mask:
            inputs["attention_mask"] = torch.ones(BATCH, length, dtype=torch.long)
            inputs["attention_mask"][1, -2:] = 0
        return inputs

    return make


def floats(name: str, *shape: int) -> Callable[[], Inputs]:
    return lambda: {name: torch.randn(BATCH, *shape)}


def both(*makers: Callable[[], Inputs]) -> Callable[[], Inputs]:
    return lambda: {name: value for make in makers for name, value in make().items()}


@torch.no_grad()
def shake(network: nn.Module) -> nn.Module:
    """Noise of the size of the weights on everything trained, and on running statistics: at its fresh zeros
    and ones a forgotten bias, gain or running mean would not show, and 0.02-sized weights hardly matter."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 50
            parameter.add_(torch.randn_like(parameter), alpha=fan_in**-0.5)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.get_buffer("running_mean").normal_(std=0.3)
            layer.get_buffer("running_var").uniform_(0.5, 1.5)
    return network


def model(make: Callable[[], nn.Module], inputs: Callable[[], Inputs]) -> Build:
    def build() -> tuple[nn.Module, Inputs]:
        torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
        return shake(make()).train(), inputs()

    return build


def pretrained(network: Any, config: Any, inputs: Callable[[], Inputs], **options: Any) -> Build:
    """A Hugging Face class from a configuration (`Any`: these classes' constructors are not typed)."""

    def make() -> nn.Module:
        settings = config(**options)
        settings.use_cache = False
        return network(settings)

    return model(make, inputs)


# A decoder with grouped keys: heads * head_dim (60) is not the hidden size (48).
GROUPED: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10, "max_position_embeddings": 37,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# Every head has its own key, of size hidden / heads = 12.
PLAIN: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 37,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DERIVED_HEAD = {name: value for name, value in GROUPED.items() if name != "head_dim"}  # 48 / 6 = 8

LISTED: dict[str, Build] = {
    "gpt2": pretrained(
        hf.GPT2LMHeadModel, hf.GPT2Config, tokens(),
        vocab_size=VOCAB, n_embd=48, n_inner=80, n_layer=2, n_head=4, n_positions=37,
    ),
    "opt": pretrained(
        hf.OPTForCausalLM, hf.OPTConfig, tokens(mask=True),
        **PLAIN | {"ffn_dim": 80, "word_embed_proj_dim": 48},
    ),
    "llama": pretrained(hf.LlamaForCausalLM, hf.LlamaConfig, tokens(mask=True), **GROUPED),
    "qwen3": pretrained(hf.Qwen3ForCausalLM, hf.Qwen3Config, tokens(), **GROUPED),
    "gemma2": pretrained(
        hf.Gemma2ForCausalLM, hf.Gemma2Config, tokens(mask=True), **GROUPED, sliding_window=5,
    ),
    "gpt_neox": pretrained(hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, tokens(), **PLAIN, rotary_pct=0.5),
    "phi3": pretrained(
        hf.Phi3ForCausalLM, hf.Phi3Config, tokens(mask=True),
        **DERIVED_HEAD, original_max_position_embeddings=37,
    ),
    "bloom": pretrained(
        hf.BloomForCausalLM, hf.BloomConfig, tokens(mask=True),
        vocab_size=VOCAB, hidden_size=48, n_layer=2, n_head=4, hidden_dropout=0.1, attention_dropout=0.1,
    ),
    "mixtral": pretrained(
        hf.MixtralForCausalLM, hf.MixtralConfig, tokens(),
        **GROUPED, num_local_experts=5, num_experts_per_tok=2, experts_implementation="batched_mm",
    ),
    "bert": pretrained(hf.BertForMaskedLM, hf.BertConfig, tokens(mask=True), **PLAIN),
    "distilbert": pretrained(
        hf.DistilBertForSequenceClassification, hf.DistilBertConfig, tokens(mask=True),
        vocab_size=VOCAB, dim=48, hidden_dim=80, n_layers=2, n_heads=4, max_position_embeddings=37,
        num_labels=CLASSES,
    ),
    "vit": pretrained(
        hf.ViTForImageClassification, hf.ViTConfig, floats("pixel_values", 3, 24, 32),
        hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        image_size=(24, 32), patch_size=8, hidden_dropout_prob=0.1, num_labels=CLASSES,
    ),
    "swin": pretrained(
        hf.SwinForImageClassification, hf.SwinConfig, floats("pixel_values", 3, 32, 32),
        image_size=32, patch_size=2, embed_dim=20, depths=[2, 2], num_heads=[2, 5], window_size=4,
        mlp_ratio=3.0, num_labels=CLASSES,
    ),
    "t5": pretrained(
        hf.T5ForConditionalGeneration, hf.T5Config,
        both(tokens(mask=True), tokens("decoder_input_ids", length=5)),
        vocab_size=VOCAB, d_model=48, d_kv=10, d_ff=80, num_layers=2, num_heads=4,
        attn_implementation="eager",
    ),
    "resnet": pretrained(
        hf.ResNetForImageClassification, hf.ResNetConfig, floats("pixel_values", 3, 32, 32),
        embedding_size=10, hidden_sizes=[24, 40], depths=[2, 2], num_labels=CLASSES,
    ),
    "convnext": pretrained(
        hf.ConvNextForImageClassification, hf.ConvNextConfig, floats("pixel_values", 3, 32, 32),
        hidden_sizes=[12, 20], depths=[2, 2], num_stages=2, drop_path_rate=0.1, num_labels=CLASSES,
    ),
    "mobilenet_v2": pretrained(
        hf.MobileNetV2ForImageClassification, hf.MobileNetV2Config, floats("pixel_values", 3, 32, 32),
        depth_multiplier=0.25, num_labels=CLASSES,
    ),
    "transformer_encoder": model(lambda: hw.Encoder(VOCAB, 48, 4, 80, 2, norm_first=True), tokens("tokens")),
    "nanogpt": model(lambda: hw.NanoGPT(VOCAB, 48, 4, 80, 2, 37), tokens("tokens")),
    "skip_mlp": model(lambda: hw.SkipMLP(13, 24, 40, CLASSES, 3), floats("x", 13)),
    "densenet": model(lambda: hw.DenseNet(3, 10, 6, 3, CLASSES), floats("image", 3, 16, 16)),
    "small_cnn": model(lambda: hw.small_cnn(3, 12, 20, 16, 40, CLASSES), floats("input", 3, 16, 16)),
}  # fmt: skip

UNLISTED: dict[str, Build] = {
    "falcon": pretrained(
        hf.FalconForCausalLM, hf.FalconConfig, tokens(mask=True),
        **PLAIN, ffn_hidden_size=80, hidden_dropout=0.1, attention_dropout=0.1,
    ),
    "falcon_grouped": pretrained(
        hf.FalconForCausalLM, hf.FalconConfig, tokens(),
        **PLAIN | {"num_attention_heads": 6}, ffn_hidden_size=80, new_decoder_architecture=True,
        num_kv_heads=3,
    ),
    "gptj": pretrained(
        hf.GPTJForCausalLM, hf.GPTJConfig, tokens(),
        vocab_size=VOCAB, n_embd=48, n_inner=80, n_layer=2, n_head=4, n_positions=37, rotary_dim=8,
    ),
    "cohere": pretrained(
        hf.CohereForCausalLM, hf.CohereConfig, tokens(mask=True), **DERIVED_HEAD, use_qk_norm=True,
    ),
    "stablelm": pretrained(
        hf.StableLmForCausalLM, hf.StableLmConfig, tokens(),
        **DERIVED_HEAD, qk_layernorm=True, partial_rotary_factor=0.5,
    ),
    "whisper": pretrained(
        hf.WhisperForConditionalGeneration, hf.WhisperConfig,
        both(floats("input_features", 10, 22), tokens("decoder_input_ids")),
        vocab_size=VOCAB, d_model=48, num_mel_bins=10, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=6, encoder_ffn_dim=80, decoder_ffn_dim=72,
        max_source_positions=11, max_target_positions=37, dropout=0.1, activation_dropout=0.1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    ),
    "clip": pretrained(
        hf.CLIPModel, hf.CLIPConfig, both(tokens(mask=True), floats("pixel_values", 3, 24, 24)),
        projection_dim=28,
        text_config=PLAIN, vision_config={
            "hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 5,
            "image_size": 24, "patch_size": 8,
        },
    ),
    "deit": pretrained(
        hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig, floats("pixel_values", 3, 32, 32),
        hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, image_size=32,
        patch_size=8, num_labels=CLASSES,
    ),
    "segformer": pretrained(
        hf.SegformerForSemanticSegmentation, hf.SegformerConfig, floats("pixel_values", 3, 32, 32),
        num_encoder_blocks=2, depths=[2, 2], sr_ratios=[2, 1], hidden_sizes=[12, 20], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[2, 5], mlp_ratios=[3, 4], decoder_hidden_size=28,
        num_labels=CLASSES,
    ),
    "regnet": pretrained(
        hf.RegNetForImageClassification, hf.RegNetConfig, floats("pixel_values", 3, 32, 32),
        embedding_size=10, hidden_sizes=[24, 40], depths=[2, 2], groups_width=8, layer_type="y",
        num_labels=CLASSES,
    ),
    "efficientnet": pretrained(
        hf.EfficientNetForImageClassification, hf.EfficientNetConfig, floats("pixel_values", 3, 32, 32),
        width_coefficient=0.5, depth_coefficient=0.5, in_channels=[32, 16, 24], out_channels=[16, 24, 40],
        kernel_sizes=[3, 3, 5], strides=[1, 2, 2], num_block_repeats=[1, 2, 2], expand_ratios=[1, 6, 6],
        hidden_dim=640, image_size=32, num_labels=CLASSES,
    ),
    "qwen2_moe": pretrained(
        hf.Qwen2MoeForCausalLM, hf.Qwen2MoeConfig, tokens(mask=True),
        **DERIVED_HEAD, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=28,
        shared_expert_intermediate_size=36, experts_implementation="batched_mm",
    ),
    # Mamba's scan is a Python loop over the sequence: it traces, but with the length fixed at 7.
    "mamba": pretrained(
        hf.MambaForCausalLM, hf.MambaConfig, tokens(),
        vocab_size=VOCAB, hidden_size=48, state_size=6, num_hidden_layers=2, expand=2, time_step_rank=5,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "deepseek_v3": pretrained(
        hf.DeepseekV3ForCausalLM, hf.DeepseekV3Config, tokens(),
        **PLAIN, num_key_value_heads=4, q_lora_rank=22, kv_lora_rank=18, qk_nope_head_dim=10,
        qk_rope_head_dim=6, v_head_dim=14, first_k_dense_replace=1, n_routed_experts=6,
        num_experts_per_tok=2, n_group=3, topk_group=2, n_shared_experts=1, moe_intermediate_size=28,
        experts_implementation="batched_mm",
    ),
    # Multi-head latent attention with rotary positions as complex numbers.
    "deepseek_v2": pretrained(
        hf.DeepseekV2ForCausalLM, hf.DeepseekV2Config, tokens(),
        **PLAIN, num_key_value_heads=4, q_lora_rank=22, kv_lora_rank=18, qk_nope_head_dim=10,
        qk_rope_head_dim=6, v_head_dim=14, first_k_dense_replace=1, n_routed_experts=6,
        num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=28, topk_method="greedy",
        experts_implementation="batched_mm",
    ),
    "granite_moe": pretrained(
        hf.GraniteMoeForCausalLM, hf.GraniteMoeConfig, tokens(),
        **DERIVED_HEAD, num_local_experts=5, num_experts_per_tok=2, experts_implementation="batched_mm",
    ),
    # Attention sinks, experts with gates and values in turns, pieces of the stream that nobody reads.
    "gpt_oss": pretrained(
        hf.GptOssForCausalLM, hf.GptOssConfig, tokens(),
        **GROUPED, num_local_experts=5, num_experts_per_tok=2, sliding_window=5,
        experts_implementation="batched_mm",
    ),
    # Norms after the sublayers, and of queries and keys over all heads.
    "olmo2": pretrained(hf.Olmo2ForCausalLM, hf.Olmo2Config, tokens(mask=True), **DERIVED_HEAD),
    # Attention and MLP side by side, layer norms, biases, partial rotary positions.
    "phi": pretrained(hf.PhiForCausalLM, hf.PhiConfig, tokens(), **PLAIN, partial_rotary_factor=0.5),
    "bart": pretrained(
        hf.BartForConditionalGeneration, hf.BartConfig,
        both(tokens(mask=True), tokens("decoder_input_ids", length=5)),
        vocab_size=VOCAB, d_model=48, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=6, encoder_ffn_dim=80, decoder_ffn_dim=72, max_position_embeddings=37,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    ),
    # One layer, run twice.
    "albert": pretrained(hf.AlbertForMaskedLM, hf.AlbertConfig, tokens(mask=True), **PLAIN, embedding_size=28),
    # Layer scale.
    "dinov2": pretrained(
        hf.Dinov2ForImageClassification, hf.Dinov2Config, floats("pixel_values", 3, 24, 24),
        hidden_size=48, mlp_ratio=2, num_hidden_layers=2, num_attention_heads=4, image_size=24,
        patch_size=8, num_labels=CLASSES,
    ),
    # Keys normalised with gains that have 1 added, local and global rotary tables.
    "gemma3": pretrained(hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, tokens(mask=True), **GROUPED, sliding_window=5),
    # Slopes computed from the number of the head.
    "mpt": pretrained(
        hf.MptForCausalLM, hf.MptConfig, tokens(),
        vocab_size=VOCAB, d_model=48, n_heads=4, n_layers=2, expansion_ratio=3, max_seq_len=37,
    ),
    # A tied head behind a norm, and parameters that nothing reads.
    "esm": pretrained(
        hf.EsmForMaskedLM, hf.EsmConfig, tokens(mask=True),
        **PLAIN, position_embedding_type="rotary", token_dropout=False, mask_token_id=2,
    ),
    # Keys normalised without gains, so that only attention's scale can make up for them.
    "nanochat": pretrained(hf.NanoChatForCausalLM, hf.NanoChatConfig, tokens(), **DERIVED_HEAD),
    # Cosine attention, norms after the sublayers.
    "swinv2": pretrained(
        hf.Swinv2ForImageClassification, hf.Swinv2Config, floats("pixel_values", 3, 32, 32),
        image_size=32, patch_size=4, embed_dim=24, depths=[1, 2], num_heads=[2, 4], window_size=4, num_labels=CLASSES,
    ),
    # Responses normalised over space; stages of which the last block is followed by another size.
    "convnextv2": pretrained(
        hf.ConvNextV2ForImageClassification, hf.ConvNextV2Config, floats("pixel_values", 3, 32, 32),
        hidden_sizes=[20, 28], depths=[2, 2], num_stages=2, image_size=32, num_labels=CLASSES,
    ),
    # A stream that is one of channels by turns; batch norms.
    "patchtst": pretrained(
        hf.PatchTSTForPrediction, hf.PatchTSTConfig, floats("past_values", 32, 3),
        num_input_channels=3, context_length=32, patch_length=8, patch_stride=8, prediction_length=5, d_model=48,
        ffn_dim=80, num_hidden_layers=2, num_attention_heads=4,
    ),
    "encoder_post_norm": model(lambda: hw.Encoder(VOCAB, 48, 4, 80, 2, norm_first=False), tokens("tokens")),
    "unet": model(lambda: hw.UNet(3, (10, 18, 26), CLASSES), floats("image", 3, 16, 16)),
    "mixer": model(lambda: hw.Mixer(3, 16, 4, 48, CLASSES, 2), floats("image", 3, 16, 16)),
    "squeeze_excite": model(lambda: hw.SqueezeExcite(3, 20, 28, 5, CLASSES), floats("image", 3, 16, 16)),
    "gated_cnn": model(lambda: hw.GatedCNN(VOCAB, 24, 2), tokens("tokens")),
    "tied_autoencoder": model(lambda: hw.TiedAutoencoder(31, 20, 11), floats("x", 31)),
    "grouped_conv": model(lambda: hw.GroupedConv(3, 20, 24, 4, CLASSES, 2), floats("image", 3, 16, 16)),
    "group_norm": model(lambda: hw.GroupNormCNN(3, 12, 20, 4, CLASSES), floats("image", 3, 16, 16)),
    "multihead_attention": model(
        lambda: hw.CrossAttention(VOCAB, 48, 4, 30, 80), both(tokens("tokens"), tokens("context", length=5)),
    ),
    "einsum_attention": model(lambda: hw.EinsumAttention(VOCAB, 48, 4, 10, 14, 80), tokens("tokens")),
    "latent_queries": model(lambda: hw.LatentQueries(VOCAB, 48, 6, 80, CLASSES), tokens("tokens")),
    "two_tower": model(
        lambda: hw.TwoTower(13, 17, 24, 40, 10), both(floats("left", 13), floats("right", 17)),
    ),
    "complex_rotary": model(lambda: hw.ComplexRotary(VOCAB, 48, 4, 80, 2, 37), tokens("tokens")),
    "routed": model(lambda: hw.Routed(13, 24, 40, 5, 2, CLASSES), floats("x", 13)),
    "wide_value": model(lambda: hw.WideValue(VOCAB, 48, 4, 10, 14, 80), tokens("tokens")),
}  # fmt: skip

ZOO: dict[str, Case] = {
    name: Case(name, build, listed)
    for table, listed in ((LISTED, True), (UNLISTED, False))
    for name, build in table.items()
}
