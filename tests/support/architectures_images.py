"""Of MONAI and vit-pytorch: images and volumes."""

import torch
from architectures import images, made, volumes


def monai(name, inputs, *args, **options):
    return made("monai", "monai.networks.nets", name, inputs, *args, **options)


def vit(module, name, inputs, **options):
    return made("vit_pytorch", f"vit_pytorch.{module}", name, inputs, bare=True, **options)


MONAI = {
    "MONAI UNet": monai("UNet", lambda: (images(16, channels=1),), 2, 1, 2, (4, 8, 16), (2, 2), num_res_units=2),
    "MONAI UNet, BatchNorm": monai(
        "UNet", lambda: (images(16, channels=1),), 2, 1, 2, (4, 8, 16), (2, 2), num_res_units=1, norm="batch"
    ),
    "BasicUNet": monai("BasicUNet", lambda: (images(32, channels=1),), 2, 1, 2, (4, 4, 8, 8, 16, 4)),
    "BasicUNet++": monai("BasicUNetPlusPlus", lambda: (images(32, channels=1),), 2, 1, 2, (4, 4, 8, 8, 16, 4)),
    "Attention UNet": monai("AttentionUnet", lambda: (images(16, channels=1),), 2, 1, 2, (4, 8, 16), (2, 2)),
    "DynUNet": monai(
        "DynUNet",
        lambda: (images(16, channels=1),),
        2,
        1,
        2,
        [3, 3, 3],
        [1, 2, 2],
        [2, 2],
        filters=[4, 8, 16],
        res_block=True,
    ),
    "SegResNet": monai("SegResNet", lambda: (images(16, channels=1),), 2, 8, 1, 2, blocks_down=(1, 2), blocks_up=(1,)),
    "DenseNet": monai("DenseNet", lambda: (images(32, channels=1),), 2, 1, 3, 8, 4, (2, 2)),
    "MONAI ResNet": monai(
        "ResNet", lambda: (volumes(16, batch=4),), "basic", [1, 1, 1, 1], [4, 8, 12, 16], n_input_channels=1, num_classes=3
    ),
    "HighResNet": monai("HighResNet", lambda: (images(16, channels=1),), 2, 1, 2),
    "Swin UNETR": monai(
        "SwinUNETR",
        lambda: (images(64, channels=1),),
        in_channels=1,
        out_channels=2,
        feature_size=12,
        depths=(1, 1, 1, 1),
        num_heads=(2, 2, 2, 2),
        spatial_dims=2,
        use_v2=True,
    ),
    "UNETR": monai(
        "UNETR",
        lambda: (images(32, channels=1),),
        1,
        2,
        32,
        feature_size=4,
        hidden_size=24,
        mlp_dim=32,
        num_heads=4,
        spatial_dims=2,
    ),
    "Restormer": made(
        "monai",
        "monai.networks.nets.restormer",
        "Restormer",
        lambda: (images(16, channels=1),),
        2,
        1,
        1,
        dim=8,
        num_blocks=(1, 1),
        heads=(1, 2),
        num_refinement_blocks=1,
    ),
    "MedNeXt": monai(
        "MedNeXt",
        lambda: (images(32, channels=1),),
        2,
        4,
        1,
        2,
        blocks_down=(1, 1),
        blocks_bottleneck=1,
        blocks_up=(1, 1),
        encoder_expansion_ratio=2,
        decoder_expansion_ratio=2,
    ),
    "MONAI AutoencoderKL": monai(
        "AutoencoderKL",
        lambda: (images(16, channels=1),),
        2,
        1,
        1,
        (1, 1),
        (8, 16),
        norm_num_groups=4,
        attention_levels=(False, True),
    ),
    "MONAI diffusion UNet": monai(
        "DiffusionModelUNet",
        lambda: (images(16, channels=1), torch.tensor([3, 7])),
        2,
        1,
        1,
        (1, 1),
        (8, 16),
        (False, True),
        norm_num_groups=4,
        num_head_channels=8,
    ),
    "QuickNAT": monai("Quicknat", lambda: (images(32, channels=1),), num_classes=3, num_channels=1, num_filters=8),
    "PatchGAN": monai("PatchDiscriminator", lambda: (images(32, channels=1),), 2, 4, 1, num_layers_d=2),
}

VIT = {"image_size": 32, "num_classes": 5, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 48}


def picture(size=32):
    return lambda: (images(size),)


VITS = {
    "vit-pytorch ViT": vit("vit", "ViT", picture(), **VIT, patch_size=8),
    "ViT, pooled": vit("vit", "ViT", picture(), **VIT, patch_size=8, pool="mean"),
    "SimpleViT": vit("simple_vit", "SimpleViT", picture(), **VIT, patch_size=8),
    "SimpleViT, QK-norm": vit("simple_vit_with_qk_norm", "SimpleViT", picture(), **VIT, patch_size=8),
    "Normalized ViT": vit("normalized_vit", "nViT", picture(), **VIT, patch_size=8),
    "CaiT": vit("cait", "CaiT", picture(), **VIT, patch_size=8, cls_depth=1),
    "CCT": vit(
        "cct",
        "CCT",
        picture(),
        img_size=32,
        embedding_dim=32,
        n_conv_layers=1,
        num_layers=2,
        num_heads=2,
        mlp_ratio=1.0,
        num_classes=5,
        positional_embedding="learnable",
    ),
    "CrossFormer": vit(
        "crossformer",
        "CrossFormer",
        picture(64),
        num_classes=5,
        dim=(32, 32, 48, 64),
        depth=(1, 1, 1, 1),
        global_window_size=(4, 2, 2, 1),
        local_window_size=(4, 4, 2, 2),
    ),
    "vit-pytorch CvT": vit(
        "cvt",
        "CvT",
        picture(),
        num_classes=5,
        s1_emb_dim=8,
        s1_heads=1,
        s2_emb_dim=16,
        s2_heads=1,
        s2_depth=1,
        s3_emb_dim=24,
        s3_heads=1,
        s3_depth=1,
    ),
    "DeepViT": vit("deepvit", "DeepViT", picture(), **VIT, patch_size=8),
    "vit-pytorch LeViT": vit(
        "levit",
        "LeViT",
        picture(64),
        image_size=64,
        num_classes=5,
        stages=2,
        dim=(16, 24),
        depth=1,
        heads=(2, 3),
        mlp_mult=2,
    ),
    "MaxViT": vit(
        "max_vit", "MaxViT", picture(64), num_classes=5, dim_conv_stem=8, dim=8, dim_head=8, depth=(1, 1), window_size=4
    ),
    "vit-pytorch MobileViT": vit(
        "mobile_vit",
        "MobileViT",
        picture(64),
        image_size=(64, 64),
        dims=[16, 24, 32],
        channels=[8, 8, 8, 8, 12, 12, 16, 16, 24, 24, 32],
        num_classes=5,
    ),
    "NesT": vit(
        "nest",
        "NesT",
        picture(),
        image_size=32,
        patch_size=4,
        dim=8,
        heads=1,
        num_hierarchies=2,
        block_repeats=(1, 1),
        num_classes=5,
    ),
    "PiT": vit(
        "pit", "PiT", picture(), image_size=32, patch_size=8, dim=16, num_classes=5, depth=(1, 1), heads=2, mlp_dim=24
    ),
    "SepViT": vit("sep_vit", "SepViT", picture(56), num_classes=5, dim=8, dim_head=8, heads=(1, 2), depth=(1, 1)),
    "T2T": vit(
        "t2t",
        "T2TViT",
        picture(),
        dim=16,
        image_size=32,
        depth=1,
        heads=2,
        mlp_dim=24,
        num_classes=5,
        t2t_layers=((7, 4), (3, 2)),
    ),
    "Twins": vit(
        "twins_svt",
        "TwinsSVT",
        picture(64),
        num_classes=5,
        s1_emb_dim=8,
        s1_global_k=4,
        s2_emb_dim=8,
        s2_global_k=4,
        s3_emb_dim=16,
        s3_depth=1,
        s4_emb_dim=16,
        s4_depth=1,
        peg_kernel_size=3,
        s1_local_patch_size=4,
        s2_local_patch_size=4,
        s3_local_patch_size=2,
        s3_global_k=2,
        s4_global_k=1,
    ),
    "XCiT": vit("xcit", "XCiT", picture(), **VIT, patch_size=8, cls_depth=1),
    "Simple U-ViT": vit("simple_uvit", "SimpleUViT", picture(), **VIT, patch_size=8),
}
