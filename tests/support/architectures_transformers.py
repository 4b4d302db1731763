"""Of transformers: language and vision."""

from architectures import Architecture, ids, images, load


def hf(model, config, inputs, use_cache=False, **options):
    """A model of transformers: names of its class and of its configuration's, a function for its inputs, and options."""

    def build():
        library = load("transformers")
        made = getattr(library, model)(getattr(library, config)(use_cache=use_cache, **options))
        return made, (), inputs()

    return Architecture("transformers", build)


def tokens(**more):
    return lambda: {"input_ids": ids(9), **more}


def sequences():
    return {"input_ids": ids(9), "decoder_input_ids": ids(7)}


def pixels(size):
    return lambda: {"pixel_values": images(size)}


BERT = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
LM = BERT | {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip

LANGUAGE = {
    "BERT": hf("BertForMaskedLM", "BertConfig", tokens(), **BERT),
    "RoBERTa": hf("RobertaModel", "RobertaConfig", tokens(), **BERT),
    "ALBERT": hf("AlbertModel", "AlbertConfig", tokens(), **BERT, embedding_size=16),
    "DistilBERT": hf(
        "DistilBertModel", "DistilBertConfig", tokens(), vocab_size=61, dim=32, n_layers=2, n_heads=4, hidden_dim=48
    ),
    "DeBERTa-v2": hf(
        "DebertaV2Model", "DebertaV2Config", tokens(), **BERT, relative_attention=True, pos_att_type=["c2p", "p2c"]
    ),
    "SqueezeBERT": hf("SqueezeBertModel", "SqueezeBertConfig", tokens(), **BERT, embedding_size=32),
    "FNet": hf("FNetModel", "FNetConfig", tokens(), **{k: v for k, v in BERT.items() if k != "num_attention_heads"}),
    "ModernBERT": hf(
        "ModernBertModel",
        "ModernBertConfig",
        tokens(),
        **BERT,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
    "GPT-2": hf(
        "GPT2LMHeadModel", "GPT2Config", tokens(), vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64
    ),
    "GPT-NeoX": hf("GPTNeoXForCausalLM", "GPTNeoXConfig", tokens(), **BERT),
    "Llama": hf("LlamaForCausalLM", "LlamaConfig", tokens(), **LM),
    "Gemma 2": hf("Gemma2ForCausalLM", "Gemma2Config", tokens(), **LM),
    "Gemma 3, cached": hf("Gemma3ForCausalLM", "Gemma3TextConfig", tokens(), **LM, use_cache=True),
    "Qwen3": hf("Qwen3ForCausalLM", "Qwen3Config", tokens(), **LM),
    "Qwen3 MoE": hf("Qwen3MoeForCausalLM", "Qwen3MoeConfig", tokens(), **LM, **MOE),
    "Mixtral": hf("MixtralForCausalLM", "MixtralConfig", tokens(), **LM, num_local_experts=4),
    "OLMo": hf("OlmoForCausalLM", "OlmoConfig", tokens(), **LM),
    "OLMo 2": hf("Olmo2ForCausalLM", "Olmo2Config", tokens(), **LM),
    "StableLM": hf("StableLmForCausalLM", "StableLmConfig", tokens(), **LM, qk_layernorm=True),
    "Persimmon": hf("PersimmonForCausalLM", "PersimmonConfig", tokens(), **BERT),
    "LFM2": hf("Lfm2ForCausalLM", "Lfm2Config", tokens(), **LM, layer_types=["conv", "full_attention"]),
    "GPT-OSS": hf("GptOssForCausalLM", "GptOssConfig", tokens(), **LM, num_local_experts=4, num_experts_per_tok=2),
    "Mamba": hf(
        "MambaForCausalLM", "MambaConfig", tokens(), vocab_size=61, hidden_size=32, state_size=4, num_hidden_layers=2
    ),
    "T5": hf(
        "T5ForConditionalGeneration",
        "T5Config",
        sequences,
        vocab_size=61,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
    ),
    "BART": hf(
        "BartModel",
        "BartConfig",
        sequences,
        vocab_size=61,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
    ),
    "ESM": hf("EsmModel", "EsmConfig", tokens(), **BERT, pad_token_id=1, mask_token_id=2),
}

VISION = {
    "ViT": hf("ViTModel", "ViTConfig", pixels(32), **VIT),
    "BEiT": hf("BeitModel", "BeitConfig", pixels(32), **VIT),
    "DINOv2": hf(
        "Dinov2Model",
        "Dinov2Config",
        pixels(32),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    ),
    "Swin": hf(
        "SwinModel",
        "SwinConfig",
        pixels(32),
        image_size=32,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    ),
    "Swin V2": hf(
        "Swinv2Model",
        "Swinv2Config",
        pixels(32),
        image_size=32,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    ),
    "FocalNet": hf(
        "FocalNetModel",
        "FocalNetConfig",
        pixels(32),
        image_size=32,
        embed_dim=16,
        depths=[2, 2],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
    ),
    "ConvNeXt": hf("ConvNextModel", "ConvNextConfig", pixels(32), hidden_sizes=[16, 24], depths=[2, 2], num_stages=2),
    "ConvNeXt V2": hf(
        "ConvNextV2Model", "ConvNextV2Config", pixels(32), hidden_sizes=[16, 24], depths=[2, 2], num_stages=2
    ),
    "ResNet": hf(
        "ResNetForImageClassification",
        "ResNetConfig",
        pixels(32),
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[2, 2],
        layer_type="basic",
    ),
    "RegNet": hf(
        "RegNetModel", "RegNetConfig", pixels(32), embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4
    ),
    "BiT": hf(
        "BitModel", "BitConfig", pixels(32), embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1], num_groups=8
    ),
    "LeViT": hf(
        "LevitModel",
        "LevitConfig",
        pixels(64),
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 3, 4],
        depths=[2, 2, 2],
        key_dim=[8, 8, 8],
    ),
    "MobileNet V1": hf(
        "MobileNetV1Model", "MobileNetV1Config", pixels(64), image_size=64, depth_multiplier=0.25, min_depth=4
    ),
    "MobileNet V2": hf(
        "MobileNetV2Model", "MobileNetV2Config", pixels(64), image_size=64, depth_multiplier=0.25, min_depth=4
    ),
    "MobileViT": hf(
        "MobileViTModel",
        "MobileViTConfig",
        pixels(64),
        image_size=64,
        hidden_sizes=[24, 32, 40],
        neck_hidden_sizes=[4, 8, 12, 16, 24, 32, 48],
    ),
    "MobileViT V2": hf(
        "MobileViTV2Model",
        "MobileViTV2Config",
        pixels(64),
        image_size=64,
        width_multiplier=0.25,
        n_attn_blocks=[1, 1, 1],
    ),
    "EfficientNet": hf(
        "EfficientNetModel",
        "EfficientNetConfig",
        pixels(64),
        image_size=64,
        width_coefficient=0.25,
        depth_coefficient=0.5,
        hidden_dim=320,
    ),
    "SwiftFormer": hf(
        "SwiftFormerModel",
        "SwiftFormerConfig",
        pixels(64),
        image_size=64,
        depths=[1, 1, 1, 1],
        embed_dims=[8, 12, 16, 24],
    ),
    "PoolFormer": hf(
        "PoolFormerModel", "PoolFormerConfig", pixels(64), depths=[1, 1, 1, 1], hidden_sizes=[8, 12, 16, 24]
    ),
    "PVT V2": hf(
        "PvtV2Model",
        "PvtV2Config",
        pixels(64),
        image_size=64,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 16, 32],
        num_attention_heads=[1, 2, 2, 4],
    ),
    "SegFormer": hf(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        pixels(64),
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 16, 32],
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=16,
    ),
    "HGNetV2": hf(
        "HGNetV2Backbone",
        "HGNetV2Config",
        pixels(64),
        embedding_size=16,
        hidden_sizes=[16, 24],
        depths=[1, 1],
        stem_channels=[3, 8, 16],
        stage_in_channels=[16, 16],
        stage_mid_channels=[8, 8],
        stage_out_channels=[16, 24],
        stage_num_blocks=[1, 1],
        stage_downsample=[False, True],
        stage_light_block=[False, True],
        stage_kernel_size=[3, 5],
        stage_numb_of_layers=[2, 2],
    ),
    "Hiera": hf(
        "HieraModel",
        "HieraConfig",
        pixels(64),
        image_size=[64, 64],
        embed_dim=16,
        depths=[1, 1],
        num_heads=[1, 2],
        num_query_pool=1,
        query_stride=[2, 2],
        masked_unit_size=[4, 4],
    ),
    "ViT-MSN": hf("ViTMSNModel", "ViTMSNConfig", pixels(32), **VIT),
    "SigLIP": hf("SiglipVisionModel", "SiglipVisionConfig", pixels(32), **VIT),
}
