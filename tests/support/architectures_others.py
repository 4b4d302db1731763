"""Of x-transformers and other packages: sequences, tables, graphs, operators."""

import torch
from architectures import Architecture, ids, images, load, made


def x_transformer(decoder, **options):
    def build():
        library = load("x_transformers")
        layers = (
            library.Decoder(**{"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8} | options)
            if decoder
            else library.Encoder(**{"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8} | options)
        )
        return library.TransformerWrapper(num_tokens=61, max_seq_len=16, attn_layers=layers), (ids(9),), {}

    return Architecture("x_transformers", build)


X_TRANSFORMERS = {
    "x-transformers encoder": x_transformer(False),
    "x-transformers, QK-norm": x_transformer(True, attn_qk_norm=True),
    "x-transformers, QK-norm with gains": x_transformer(True, attn_qk_norm=True, attn_qk_norm_dim_scale=True),
    "x-transformers, RMSNorm": x_transformer(True, use_rmsnorm=True, ff_glu=True, rotary_pos_emb=True),
    "x-transformers, ScaleNorm": x_transformer(True, use_scalenorm=True, ff_relu_squared=True),
    "x-transformers, sandwich": x_transformer(True, sandwich_norm=True, attn_one_kv_head=True),
    "x-transformers, post-norm": x_transformer(False, pre_norm=False, residual_attn=True),
    "x-transformers, ReLU": x_transformer(
        False, use_simple_rmsnorm=True, ff_custom_activation=torch.nn.ReLU(), ff_post_act_ln=True
    ),
}


def series(*shape):
    return lambda: (torch.randn(*shape),)


SEQUENCES = {
    "Conformer": made(
        "conformer",
        "conformer",
        "Conformer",
        series(2, 14, 32),
        dim=32,
        depth=2,
        dim_head=8,
        heads=4,
        ff_mult=2,
        conv_expansion_factor=2,
        conv_kernel_size=5,
    ),
    "Linformer": made(
        "linformer",
        "linformer",
        "LinformerLM",
        lambda: (ids(16),),
        num_tokens=61,
        dim=32,
        seq_len=16,
        depth=2,
        heads=4,
        k=8,
    ),
    "Performer": made(
        "performer_pytorch",
        "performer_pytorch",
        "PerformerLM",
        lambda: (ids(16),),
        num_tokens=61,
        dim=32,
        depth=2,
        heads=4,
        dim_head=8,
        max_seq_len=16,
        use_scalenorm=True,
    ),
    "Nyströmformer": made(
        "nystrom_attention",
        "nystrom_attention",
        "Nystromformer",
        series(2, 16, 32),
        dim=32,
        depth=2,
        heads=4,
        dim_head=8,
        num_landmarks=4,
    ),
    "Perceiver": made(
        "perceiver_pytorch",
        "perceiver_pytorch",
        "Perceiver",
        series(2, 6, 6, 3),
        input_channels=3,
        input_axis=2,
        num_freq_bands=2,
        max_freq=4.0,
        depth=2,
        num_latents=5,
        latent_dim=16,
        num_classes=4,
        latent_dim_head=8,
        cross_dim_head=8,
        latent_heads=2,
    ),
    "gMLP": made(
        "g_mlp_pytorch", "g_mlp_pytorch", "gMLP", lambda: (ids(16),), num_tokens=61, dim=32, depth=2, seq_len=16
    ),
    "MLP-Mixer": made(
        "mlp_mixer_pytorch",
        "mlp_mixer_pytorch",
        "MLPMixer",
        lambda: (images(32),),
        image_size=32,
        channels=3,
        patch_size=8,
        dim=16,
        depth=2,
        num_classes=4,
    ),
    "ResMLP": made(
        "res_mlp_pytorch",
        "res_mlp_pytorch",
        "ResMLP",
        lambda: (images(32),),
        image_size=32,
        patch_size=8,
        dim=16,
        depth=2,
        num_classes=4,
    ),
    "TCN": made(
        "pytorch_tcn",
        "pytorch_tcn",
        "TCN",
        series(4, 6, 20),
        num_inputs=6,
        num_channels=[8, 8],
        kernel_size=3,
        use_norm="weight_norm",
    ),
    "TCN, BatchNorm": made(
        "pytorch_tcn",
        "pytorch_tcn",
        "TCN",
        series(4, 6, 20),
        num_inputs=6,
        num_channels=[8, 8],
        kernel_size=3,
        use_norm="batch_norm",
    ),
    "iTransformer": made(
        "iTransformer",
        "iTransformer",
        "iTransformer",
        series(2, 20, 4),
        num_variates=4,
        lookback_len=20,
        dim=16,
        depth=2,
        heads=2,
        dim_head=8,
        pred_length=(4,),
    ),
    "Lambda layer": made(
        "lambda_networks",
        "lambda_networks",
        "LambdaLayer",
        lambda: (images(8, channels=16),),
        dim=16,
        dim_out=16,
        r=3,
        dim_k=8,
        heads=2,
        dim_u=2,
    ),
    "HaloNet attention": made(
        "halonet_pytorch",
        "halonet_pytorch",
        "HaloAttention",
        lambda: (images(8, channels=16),),
        dim=16,
        block_size=4,
        halo_size=2,
        dim_head=8,
        heads=2,
    ),
}

TABLES = {
    "TabNet": made(
        "pytorch_tabnet",
        "pytorch_tabnet.tab_network",
        "TabNet",
        series(16, 10),
        10,
        3,
        n_d=4,
        n_a=4,
        n_steps=2,
        virtual_batch_size=8,
        group_attention_matrix=torch.eye(10),
    ),
    "FT-Transformer": made(
        "rtdl_revisiting_models",
        "rtdl_revisiting_models",
        "FTTransformer",
        lambda: (torch.randn(6, 4), torch.randint(3, (6, 2))),
        n_cont_features=4,
        cat_cardinalities=[3, 3],
        d_out=2,
        n_blocks=2,
        d_block=16,
        attention_n_heads=2,
        attention_dropout=0.1,
        ffn_d_hidden_multiplier=4 / 3,
        ffn_dropout=0.1,
        residual_dropout=0.0,
    ),
    "Tabular ResNet": made(
        "rtdl_revisiting_models",
        "rtdl_revisiting_models",
        "ResNet",
        series(8, 6),
        d_in=6,
        d_out=2,
        n_blocks=2,
        d_block=12,
        d_hidden=16,
        d_hidden_multiplier=None,
        dropout1=0.1,
        dropout2=0.0,
    ),
    "TabTransformer": made(
        "tab_transformer_pytorch",
        "tab_transformer_pytorch",
        "TabTransformer",
        lambda: (torch.randint(3, (6, 2)), torch.randn(6, 4)),
        categories=(3, 3),
        num_continuous=4,
        dim=16,
        dim_out=2,
        depth=2,
        heads=2,
        dim_head=8,
        mlp_act=torch.nn.ReLU(),
    ),
    "EfficientNet-PyTorch": made("efficientnet_pytorch", "architectures_others", "efficientnet", lambda: (images(64),)),
}


def efficientnet():
    """B0 at a quarter of its width."""
    library = load("efficientnet_pytorch.utils")
    blocks, options = library.efficientnet(width_coefficient=0.25, depth_coefficient=0.5, image_size=64, num_classes=5)
    return load("efficientnet_pytorch").EfficientNet(blocks, options)


def graph(layers, normed):
    """A graph network: what torch_geometric calls its layers and its norm, taking one `Data`, as is usual there."""

    def build():
        nn, data = load("torch_geometric.nn"), load("torch_geometric.data")

        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = torch.nn.ModuleList([layers(nn, 12, 16), layers(nn, 16, 16)])
                self.norms = torch.nn.ModuleList([normed(nn), normed(nn)])
                self.head = torch.nn.Linear(16, 3)

            def forward(self, given):
                x = given.x
                for layer, norm in zip(self.layers, self.norms, strict=True):
                    x = norm(layer(x, given.edge_index)).relu()
                return self.head(x)

        return Network(), (data.Data(x=torch.randn(30, 12), edge_index=torch.randint(30, (2, 90))),), {}

    return Architecture("torch_geometric", build)


def mlp(inputs, outputs):
    return torch.nn.Sequential(torch.nn.Linear(inputs, 16), torch.nn.ReLU(), torch.nn.Linear(16, outputs))


GRAPHS = {
    "GCN": graph(lambda nn, i, o: nn.GCNConv(i, o), lambda nn: nn.BatchNorm(16)),
    "GraphSAGE": graph(lambda nn, i, o: nn.SAGEConv(i, o, normalize=True), lambda nn: nn.LayerNorm(16)),
    "GAT": graph(lambda nn, i, o: nn.GATConv(i, o // 2, heads=2), lambda nn: nn.GraphNorm(16)),
    "GIN": graph(lambda nn, i, o: nn.GINConv(mlp(i, o), train_eps=True), lambda nn: nn.BatchNorm(16)),
    "Graph transformer": graph(lambda nn, i, o: nn.TransformerConv(i, o // 2, heads=2), lambda nn: nn.PairNorm()),
    "EGNN": made(
        "egnn_pytorch",
        "egnn_pytorch",
        "EGNN",
        lambda: (torch.randn(1, 8, 12), torch.randn(1, 8, 3)),
        dim=12,
        m_dim=8,
        norm_feats=True,
        norm_coors=True,
    ),
}

OPERATORS = {
    "FNO": made(
        "neuralop",
        "neuralop.models",
        "FNO",
        lambda: (images(16, channels=2),),
        n_modes=(4, 4),
        in_channels=2,
        out_channels=1,
        hidden_channels=8,
        n_layers=2,
    ),
    "FNO, normed": made(
        "neuralop",
        "neuralop.models",
        "FNO",
        lambda: (images(16, channels=2),),
        n_modes=(4, 4),
        in_channels=2,
        out_channels=1,
        hidden_channels=8,
        n_layers=2,
        norm="instance_norm",
    ),
    "TFNO": made(
        "neuralop",
        "neuralop.models",
        "TFNO",
        lambda: (images(16, channels=2),),
        n_modes=(4, 4),
        in_channels=2,
        out_channels=1,
        hidden_channels=8,
        n_layers=2,
        norm="group_norm",
    ),
    "UNO": made(
        "neuralop",
        "neuralop.models",
        "UNO",
        lambda: (images(16, channels=2),),
        in_channels=2,
        out_channels=1,
        hidden_channels=8,
        n_layers=3,
        uno_out_channels=[8, 8, 8],
        uno_n_modes=[[4, 4]] * 3,
        uno_scalings=[[1.0, 1.0], [0.5, 0.5], [2.0, 2.0]],
        channel_mlp_skip="linear",
    ),
}
