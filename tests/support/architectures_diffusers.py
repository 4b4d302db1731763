"""Of diffusers: what removes noise, and autoencoders."""

import torch
from architectures import images, made


def diffuser(name, inputs, **options):
    return made("diffusers", "diffusers", name, inputs, **options)


def timed(channels=4, size=8, **more):
    """Noisy images, times and what they depend on."""

    def inputs():
        made = {key: value() if callable(value) else value for key, value in more.items()}
        return {"sample": images(size, channels=channels), "timestep": torch.tensor([10, 500]), **made}

    return inputs


def latents(key="hidden_states", channels=4, size=8, **more):
    def inputs():
        made = {name: value() if callable(value) else value for name, value in more.items()}
        return {key: images(size, channels=channels), "timestep": torch.tensor([10, 500]), **made}

    return inputs


BLOCKS = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}

DIFFUSERS = {
    "UNet2D": diffuser(
        "UNet2DModel",
        timed(),
        **BLOCKS,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    "UNet2D condition": diffuser(
        "UNet2DConditionModel",
        timed(encoder_hidden_states=lambda: torch.randn(2, 5, 12)),
        **BLOCKS,
        sample_size=8,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    "UNet1D": diffuser(
        "UNet1DModel",
        lambda: {"sample": torch.randn(2, 14, 16), "timestep": torch.tensor([3, 7])},
        sample_size=16,
        in_channels=14,
        out_channels=14,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        act_fn="mish",
        out_block_type="OutConv1DBlock",
        down_block_types=("DownResnetBlock1D", "DownResnetBlock1D"),
        up_block_types=("UpResnetBlock1D",),
        mid_block_type="MidResTemporalBlock1D",
        use_timestep_embedding=True,
        time_embedding_type="positional",
        flip_sin_to_cos=False,
        freq_shift=1.0,
    ),
    "UNet3D condition": diffuser(
        "UNet3DConditionModel",
        lambda: {
            "sample": torch.randn(2, 4, 2, 8, 8),
            "timestep": torch.tensor([3, 7]),
            "encoder_hidden_states": torch.randn(2, 5, 12),
        },
        **BLOCKS,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    ),
    "AutoencoderKL": diffuser(
        "AutoencoderKL",
        lambda: {"sample": images(16)},
        **BLOCKS,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    "AutoencoderTiny": diffuser(
        "AutoencoderTiny",
        lambda: {"sample": images(16)},
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ),
    "AutoencoderDC": diffuser(
        "AutoencoderDC",
        lambda: {"sample": images(16)},
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
    ),
    "VQModel": diffuser(
        "VQModel",
        lambda: {"sample": images(16)},
        **BLOCKS,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=16,
    ),
    "DiT": diffuser(
        "DiTTransformer2DModel",
        latents(class_labels=lambda: torch.tensor([1, 2])),
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=10,
    ),
    "PixArt": diffuser(
        "PixArtTransformer2DModel",
        latents(encoder_hidden_states=lambda: torch.randn(2, 5, 12)),
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        sample_size=8,
        cross_attention_dim=16,
        caption_channels=12,
        norm_num_groups=4,
        use_additional_conditions=False,
    ),
    "SD3": diffuser(
        "SD3Transformer2DModel",
        latents(encoder_hidden_states=lambda: torch.randn(2, 5, 12), pooled_projections=lambda: torch.randn(2, 14)),
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=14,
        qk_norm="rms_norm",
        pos_embed_max_size=8,
    ),
    "Flux": diffuser(
        "FluxTransformer2DModel",
        lambda: {
            "hidden_states": torch.randn(2, 6, 4),
            "encoder_hidden_states": torch.randn(2, 5, 12),
            "pooled_projections": torch.randn(2, 14),
            "timestep": torch.tensor([0.1, 0.7]),
            "img_ids": torch.randn(6, 3),
            "txt_ids": torch.randn(5, 3),
        },
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=14,
        axes_dims_rope=(4, 2, 2),
        patch_size=1,
    ),
    "Sana": diffuser(
        "SanaTransformer2DModel",
        latents(encoder_hidden_states=lambda: torch.randn(2, 5, 12)),
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=8,
    ),
    "AuraFlow": diffuser(
        "AuraFlowTransformer2DModel",
        latents(encoder_hidden_states=lambda: torch.randn(2, 5, 12)),
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    ),
    "HunyuanDiT": diffuser(
        "HunyuanDiT2DModel",
        lambda: {
            "hidden_states": images(8, channels=4),
            "timestep": torch.tensor([10.0, 500.0]),
            "encoder_hidden_states": torch.randn(2, 5, 16),
            "text_embedding_mask": torch.ones(2, 5),
            "encoder_hidden_states_t5": torch.randn(2, 5, 16),
            "text_embedding_mask_t5": torch.ones(2, 5),
            "image_meta_size": torch.ones(2, 6),
            "style": torch.tensor([0, 0]),
            "image_rotary_emb": (torch.randn(16, 8), torch.randn(16, 8)),
        },
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=4,
        hidden_size=24,
        text_len=5,
        text_len_t5=5,
        sample_size=8,
        in_channels=4,
    ),
    "CogVideoX": diffuser(
        "CogVideoXTransformer3DModel",
        lambda: {
            "hidden_states": torch.randn(2, 1, 4, 8, 8),
            "timestep": torch.tensor([3, 7]),
            "encoder_hidden_states": torch.randn(2, 5, 12),
        },
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=12,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=1,
        max_text_seq_length=5,
    ),
    "UViT": diffuser(
        "UVit2DModel",
        lambda: {
            "input_ids": torch.randint(16, (2, 8, 8)),
            "encoder_hidden_states": torch.randn(2, 5, 12),
            "pooled_text_emb": torch.randn(2, 14),
            "micro_conds": torch.rand(2, 5),
        },
        hidden_size=16,
        cond_embed_dim=14,
        encoder_hidden_size=12,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        vocab_size=17,
        codebook_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        block_num_heads=2,
        block_out_channels=16,
        in_channels=16,
        intermediate_size=32,
        num_res_blocks=1,
    ),
}
