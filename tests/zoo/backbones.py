"""Backbones of KerasHub in their smallest sensible sizes, on inputs of fixed shapes.

`BUILDERS` lists the names; KerasHub is imported where a model is built.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

LENGTH, VOCABULARY = 12, 60

_SIZE = {"vocabulary_size": VOCABULARY, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 32}
_HEADS = {**_SIZE, "num_heads": 2}
_GROUPED = {**_SIZE, "num_query_heads": 4, "num_key_value_heads": 2}
_EXPERTS = {"num_experts": 4, "top_k": 2}
_IMAGE = {"image_shape": (32, 32, 3)}
_VIT = {**_IMAGE, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16}
_GEMMA = {**_GROUPED, "head_dim": 8}
_T5_GEMMA = {
    f"{part}_{key}": value
    for part in ("encoder", "decoder")
    for key, value in {
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "num_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    }.items()
}
_RESNET: dict[str, Any] = {
    **_IMAGE,
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [3],
    "stackwise_num_filters": [64, 16, 16],
    "stackwise_num_blocks": [1, 1, 1],
    "stackwise_num_strides": [1, 2, 2],
    "block_type": "basic_block",
}

# Backbone -> arguments.
_SETTINGS: dict[str, dict[str, Any]] = {
    "Albert": {**_HEADS, "embedding_dim": 8, "max_sequence_length": LENGTH},
    "Bart": {**_HEADS, "max_sequence_length": LENGTH},
    "Bert": {**_HEADS, "max_sequence_length": LENGTH},
    "Bloom": _HEADS,
    "CSPNet": {
        **_IMAGE,
        "stem_filters": 8,
        "stem_kernel_size": 3,
        "stem_strides": 1,
        "stackwise_depth": [1, 2],
        "stackwise_strides": [1, 2],
        "stackwise_num_filters": [8, 16],
        "block_type": "dark_block",
        "stage_type": "dark",
    },
    "DINOV2": {**_VIT, "intermediate_dim": 32, "position_embedding_shape": (32, 32, 3)},
    "DINOV3": {**_VIT, "intermediate_dim": 32},
    "DebertaV3": {**_HEADS, "max_sequence_length": LENGTH, "bucket_size": 4},
    "DeiT": {**_VIT, "intermediate_dim": 32},
    "DenseNet": {**_IMAGE, "stackwise_num_repeats": [2, 2], "growth_rate": 8},
    "DistilBert": {**_HEADS, "max_sequence_length": LENGTH},
    "EdRec": {
        "vocab_size": VOCABULARY,
        "num_layers_enc": 1,
        "num_layers_dec": 1,
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "num_heads": 2,
    },
    "EfficientNet": {
        "input_shape": (32, 32, 3),
        "stackwise_width_coefficients": [1.0, 1.0],
        "stackwise_depth_coefficients": [1.0, 1.0],
        "stackwise_kernel_sizes": [3, 3],
        "stackwise_num_repeats": [1, 2],
        "stackwise_input_filters": [8, 8],
        "stackwise_output_filters": [8, 16],
        "stackwise_expansion_ratios": [1, 4],
        "stackwise_squeeze_and_excite_ratios": [0.25, 0.25],
        "stackwise_strides": [1, 2],
        "stackwise_block_types": ["fused", "unfused"],
        "num_features": 16,
    },
    "Electra": {
        "vocab_size": VOCABULARY,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 16,
        "embedding_dim": 8,
        "intermediate_dim": 32,
        "max_sequence_length": LENGTH,
    },
    "ESM": {**_HEADS, "max_sequence_length": LENGTH},
    "FNet": {**_SIZE, "max_sequence_length": LENGTH},
    "Falcon": {**_SIZE, "num_attention_heads": 2},
    "GPT2": {**_HEADS, "max_sequence_length": LENGTH},
    "GPTNeoX": {**_HEADS, "max_sequence_length": LENGTH, "rotary_percentage": 0.5},
    "Gemma": {**_GEMMA, "use_sliding_window_attention": True, "sliding_window_size": 4},
    "Gemma3": {**_GEMMA, "image_size": 16},
    "GptOss": {**_GROUPED, **_EXPERTS, "sliding_window": 4},
    "HGNetV2": {
        **_IMAGE,
        "depths": [1, 1],
        "embedding_size": 8,
        "hidden_sizes": [16, 24],
        "stem_channels": [3, 8, 8],
        "hidden_act": "relu",
        "use_learnable_affine_block": True,
        "stackwise_stage_filters": [[8, 8, 16, 1, 1, 3], [16, 8, 24, 1, 1, 3]],
        "apply_downsample": [False, True],
        "use_lightweight_conv_block": [False, True],
    },
    "Llama": _GROUPED,
    "Llama3": _GROUPED,
    "MiT": {
        **_IMAGE,
        "layerwise_depths": [1, 1],
        "num_layers": 2,
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [4, 1],
        "max_drop_path_rate": 0.1,
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
        "hidden_dims": [8, 16],
    },
    "Mistral": {**_GROUPED, "sliding_window": 4},
    "Mixtral": {**_GROUPED, **_EXPERTS, "sliding_window": 4},
    "MobileNet": {
        **_IMAGE,
        "stackwise_expansion": [[1], [4]],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_filters": [[8], [16]],
        "stackwise_kernel_size": [[3], [5]],
        "stackwise_num_strides": [[1], [2]],
        "stackwise_se_ratio": [[None], [0.25]],
        "stackwise_activation": [["relu"], ["hard_swish"]],
        "stackwise_padding": [[1], [2]],
        "output_num_filters": 32,
        "depthwise_filters": 8,
        "depthwise_stride": 2,
        "depthwise_residual": False,
        "last_layer_filter": 24,
    },
    "Moonshine": {
        "vocabulary_size": VOCABULARY,
        "filter_dim": 16,
        "encoder_num_layers": 1,
        "decoder_num_layers": 1,
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "encoder_num_heads": 2,
        "decoder_num_heads": 2,
    },
    "OPT": {**_HEADS, "max_sequence_length": LENGTH},
    "PaliGemma": {
        **_GEMMA,
        "image_size": 16,
        "vit_patch_size": 8,
        "vit_num_heads": 2,
        "vit_hidden_dim": 16,
        "vit_num_layers": 1,
        "vit_intermediate_dim": 32,
    },
    "Phi3": {**_GROUPED, "max_sequence_length": LENGTH, "pretraining_sequence_length": LENGTH},
    "Qwen": _GROUPED,
    "Qwen3": {**_GROUPED, "head_dim": 8},
    "Qwen3Moe": {**_GROUPED, **_EXPERTS, "moe_intermediate_dim": 16, "head_dim": 8},
    "QwenMoe": {
        **_GROUPED,
        **_EXPERTS,
        "moe_intermediate_dim": 16,
        "shared_expert_intermediate_dim": 16,
    },
    "Qwen3_5": {
        **_GROUPED,
        "head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "RWKV7": {
        "hidden_size": 16,
        "head_size": 8,
        "num_layers": 2,
        "vocabulary_size": VOCABULARY,
        "intermediate_dim": 32,
        "gate_lora": 8,
        "mv_lora": 8,
        "aaa_lora": 8,
        "decay_lora": 8,
    },
    "ResNet": _RESNET,
    "Roberta": {**_HEADS, "max_sequence_length": LENGTH},
    "SmolLM3": {
        **_SIZE,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_layer_enabled_list": [True, False],
        "layer_types": ["full_attention", "full_attention"],
        "mlp_bias": False,
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
    },
    "SwinTransformer": {
        **_IMAGE,
        "embed_dim": 8,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "window_size": 4,
        "patch_size": 2,
    },
    "T5": {**_HEADS, "key_value_dim": 8},
    "T5Gemma": {
        **_T5_GEMMA,
        "vocabulary_size": VOCABULARY,
        "sliding_window": 4,
        "cross_attention_hidden_size": 16,
    },
    "VGG": {**_IMAGE, "stackwise_num_repeats": [1, 2], "stackwise_num_filters": [8, 16]},
    "VideoPrism": {
        **_IMAGE,
        "num_frames": 4,
        "patch_size": 8,
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "num_heads": 2,
        "num_spatial_layers": 1,
        "num_temporal_layers": 1,
        "num_auxiliary_layers": 1,
    },
    "ViT": {**_VIT, "mlp_dim": 32},
    "ViTDet": {
        **_IMAGE,
        "hidden_size": 16,
        "num_layers": 2,
        "intermediate_dim": 32,
        "num_heads": 2,
        "global_attention_layer_indices": [1],
        "patch_size": 8,
        "num_output_channels": 16,
        "window_size": 2,
    },
    "Whisper": {
        **_HEADS,
        "num_mels": 8,
        "max_encoder_sequence_length": 2 * LENGTH,
        "max_decoder_sequence_length": LENGTH,
    },
    "XLMRoberta": {**_HEADS, "max_sequence_length": LENGTH},
    "Xception": {
        **_IMAGE,
        "stackwise_conv_filters": [[8, 8], [16, 16]],
        "stackwise_pooling": [True, False],
    },
}


def _resnet():
    import keras_hub

    return keras_hub.models.ResNetBackbone(**_RESNET)


def _pyramid() -> dict[str, Any]:
    return {"image_encoder": _resnet(), "min_level": 2, "max_level": 3}


def _deeplab() -> dict[str, Any]:
    return {
        "image_encoder": _resnet(),
        "low_level_feature_key": "P2",
        "spatial_pyramid_pooling_key": "P3",
        "dilation_rates": [2, 4],
        "upsampling_size": 2,
        "projection_filters": 8,
        "image_shape": (32, 32, 3),
    }


def _segformer() -> dict[str, Any]:
    import keras_hub

    settings: dict[str, Any] = {
        "image_shape": (64, 64, 3),
        "layerwise_depths": [1] * 4,
        "num_layers": 4,
        "layerwise_num_heads": [1, 1, 2, 2],
        "layerwise_sr_ratios": [4, 2, 1, 1],
        "max_drop_path_rate": 0.1,
        "layerwise_patch_sizes": [7, 3, 3, 3],
        "layerwise_strides": [4, 2, 2, 2],
        "hidden_dims": [8, 16, 24, 32],
    }
    encoder = keras_hub.models.MiTBackbone(**settings)
    return {"image_encoder": encoder, "projection_filters": 16}


def _clip(kind: str = "CLIP") -> dict[str, Any]:
    import keras_hub.src.models.clip.clip_text_encoder as text
    import keras_hub.src.models.clip.clip_vision_encoder as vision

    sizes = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "intermediate_dim": 32}
    return {
        "vision_encoder": vision.CLIPVisionEncoder(patch_size=8, **sizes, **_IMAGE),
        "text_encoder": text.CLIPTextEncoder(
            vocabulary_size=VOCABULARY, embedding_dim=16, max_sequence_length=LENGTH, **sizes
        ),
        "projection_dim": 8,
    }


def _siglip() -> dict[str, Any]:
    import keras_hub.src.models.siglip.siglip_text_encoder as text
    import keras_hub.src.models.siglip.siglip_vision_encoder as vision

    sizes = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "intermediate_dim": 32}
    return {
        "vision_encoder": vision.SigLIPVisionEncoder(patch_size=8, **sizes, **_IMAGE),
        "text_encoder": text.SigLIPTextEncoder(
            vocabulary_size=VOCABULARY, embedding_dim=16, max_sequence_length=LENGTH, **sizes
        ),
    }


def _parseq() -> dict[str, Any]:
    import keras_hub

    return {
        "image_encoder": keras_hub.models.ViTBackbone(
            **{**_VIT, "image_shape": (16, 32, 3), "mlp_dim": 32, "use_class_token": False}
        ),
        "vocabulary_size": VOCABULARY,
        "max_label_length": LENGTH - 1,
        "decoder_hidden_dim": 16,
        "num_decoder_layers": 1,
        "num_decoder_heads": 2,
        "decoder_mlp_dim": 32,
    }


def _depth_anything() -> dict[str, Any]:
    import keras_hub

    settings = {**_SETTINGS["DINOV2"], "num_layers": 4, "apply_layernorm": True, "patch_size": 4}
    return {
        "image_encoder": keras_hub.models.DINOV2Backbone(**settings),
        "reassemble_factors": [4, 2, 1, 0.5],
        "neck_hidden_dims": [8, 8, 8, 8],
        "fusion_hidden_dim": 8,
        "head_hidden_dim": 8,
        "head_in_index": -1,
        "feature_keys": ["stage1", "stage2", "stage3", "stage4"],
    }


# Backbones made of others -> function that makes their arguments.
_MADE_OF = {
    "CLIP": _clip,
    "DeepLabV3": _deeplab,
    "DepthAnything": _depth_anything,
    "PARSeq": _parseq,
    "RetinaNet": lambda: {**_pyramid(), "use_p5": False, **_IMAGE},
    "SegFormer": _segformer,
    "SigLIP": _siglip,
}

BUILDERS = sorted([*_SETTINGS, *_MADE_OF])

# Sizes of axes that a backbone leaves open, where they are not those of tokens or images.
_OPEN = {
    ("Moonshine", "encoder_input_values"): (2000, 1),
    ("Moonshine", "encoder_padding_mask"): (2000,),
    ("Whisper", "encoder_features"): (2 * LENGTH, 8),
}


@dataclasses.dataclass(frozen=True)
class Backbone:
    """The model of a name, with what the files in `models/` have, too.

    Attributes:
        name: as in `BUILDERS`.
    """

    name: str

    def build(self) -> keras.Model:
        """The backbone on inputs of fixed shapes."""
        import keras_hub

        settings = _MADE_OF[self.name]() if self.name in _MADE_OF else _SETTINGS[self.name]
        backbone = getattr(keras_hub.models, f"{self.name}Backbone")(**settings)
        old = backbone.input
        if not isinstance(old, dict):
            shape = [32 if size is None else size for size in old.shape[1:]]
            new: Any = keras.Input(shape, dtype=old.dtype, name="images")
        else:
            new = {k: keras.Input(self._shape(k, x), dtype=x.dtype, name=k) for k, x in old.items()}
        return keras.Model(new, backbone(new), name="zoo")

    def _shape(self, key: str, tensor) -> tuple[int, ...]:
        sizes = [32 if size is None and len(tensor.shape) > 3 else size for size in tensor.shape]
        fixed = tuple(LENGTH if size is None else size for size in sizes[1:])
        return _OPEN.get((self.name, key), fixed)

    def data(self, n: int, rng: np.random.Generator):
        """Random inputs: tokens, masks of the first ones, images."""
        model = self.build()

        def one(tensor):
            name, shape = tensor.name, (n, *tensor.shape[1:])
            if "mask" in name:
                lengths = rng.integers(shape[1] // 2, shape[1] + 1, (n, 1))
                return (np.arange(shape[1]) < lengths).astype(tensor.dtype)
            if "float" in tensor.dtype:
                return rng.normal(size=shape).astype("float32")
            return rng.integers(0, 2 if "segment" in name else 50, shape).astype(tensor.dtype)

        return keras.tree.map_structure(one, model.input)
