"""Of transformers: speech and series of numbers."""

import torch
from architectures import ids
from architectures_transformers import hf


def waves(length):
    return lambda: {"input_values": torch.randn(2, length)}


def spoken():
    """Nine phonemes, two frames each, with what they are to sound like."""
    track = torch.randn(2, 9, 1)
    labels = {"duration_labels": torch.full((2, 9), 2), "pitch_labels": track, "energy_labels": track}
    return {"input_ids": ids(9), "spectrogram_labels": torch.randn(2, 18, 8), **labels}


SPEECH = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 20,
    "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4, "apply_spec_augment": False,
}  # fmt: skip

SERIES = {
    "Wav2Vec2": hf("Wav2Vec2Model", "Wav2Vec2Config", waves(400), **SPEECH, num_feat_extract_layers=2),
    "HuBERT": hf("HubertModel", "HubertConfig", waves(400), **SPEECH, num_feat_extract_layers=2),
    "WavLM": hf("WavLMModel", "WavLMConfig", waves(400), **SPEECH, num_feat_extract_layers=2),
    "SEW": hf("SEWModel", "SEWConfig", waves(400), **SPEECH, num_feat_extract_layers=2, squeeze_factor=2),
    "UniSpeech": hf("UniSpeechModel", "UniSpeechConfig", waves(400), **SPEECH, num_feat_extract_layers=2),
    "Wav2Vec2 Conformer": hf(
        "Wav2Vec2ConformerModel",
        "Wav2Vec2ConformerConfig",
        waves(400),
        **SPEECH,
        num_feat_extract_layers=2,
        conv_depthwise_kernel_size=5,
    ),
    "FastSpeech2 Conformer": hf(
        "FastSpeech2ConformerModel",
        "FastSpeech2ConformerConfig",
        spoken,
        vocab_size=61,
        hidden_size=32,
        num_mel_bins=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        encoder_linear_units=48,
        decoder_linear_units=48,
        speech_decoder_postnet_units=16,
        duration_predictor_channels=16,
        energy_predictor_channels=16,
        pitch_predictor_channels=16,
        encoder_kernel_size=3,
        decoder_kernel_size=5,
        positionwise_conv_kernel_size=3,
    ),
    "Whisper": hf(
        "WhisperModel",
        "WhisperConfig",
        lambda: {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": ids(7)},
        vocab_size=61,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "Audio Spectrogram Transformer": hf(
        "ASTModel",
        "ASTConfig",
        lambda: {"input_values": torch.randn(2, 32, 16)},
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_length=32,
        num_mel_bins=16,
        patch_size=8,
        frequency_stride=4,
        time_stride=4,
    ),
    "EnCodec": hf(
        "EncodecModel",
        "EncodecConfig",
        lambda: {"input_values": torch.randn(2, 1, 640)},
        num_filters=4,
        hidden_size=16,
        codebook_size=16,
        codebook_dim=16,
        num_lstm_layers=1,
        upsampling_ratios=[4, 4],
    ),
    "PatchTST": hf(
        "PatchTSTModel",
        "PatchTSTConfig",
        lambda: {"past_values": torch.randn(4, 32, 2)},
        num_input_channels=2,
        context_length=32,
        patch_length=8,
        patch_stride=8,
        d_model=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        ffn_dim=24,
    ),
    "PatchTSMixer": hf(
        "PatchTSMixerModel",
        "PatchTSMixerConfig",
        lambda: {"past_values": torch.randn(4, 32, 2)},
        context_length=32,
        patch_length=8,
        patch_stride=8,
        num_input_channels=2,
        d_model=16,
        num_layers=2,
        norm_mlp="BatchNorm",
    ),
}
