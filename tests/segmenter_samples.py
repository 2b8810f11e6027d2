"""Tiny segmenters: checkpoints of transformers' own classes, and ONNX files."""

import json

import numpy as np
import torch


def save_segformer(folder, classes=2, names=None):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[4, 2],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        id2label=dict(enumerate(names or [f"LABEL_{n}" for n in range(classes)])),
    )
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    size = {"height": 96, "width": 96}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": size, "image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    return folder


def save_sam(folder):
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig
    from transformers import SamVisionConfig as Vision

    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    vision = Vision(
        image_size=64,
        patch_size=16,
        output_channels=8,
        num_pos_feats=4,
        mlp_dim=16,
        window_size=0,
        **small,
    )
    prompt = SamPromptEncoderConfig(
        hidden_size=8, image_size=64, patch_size=16, mask_input_channels=4
    )
    decoder = SamMaskDecoderConfig(
        mlp_dim=16, iou_head_hidden_dim=8, iou_head_depth=2, attention_downsample_rate=1, **small
    )
    config = SamConfig(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
    )
    SamModel(config).save_pretrained(folder)
    return folder


def save_onnx(file, *, inputs=1, batch="b", side="s", operator="Sigmoid", channels=(0,)):
    """Write a network that takes some channels of its input through one function."""
    from onnx import TensorProto, helper, numpy_helper, save

    given = [
        helper.make_tensor_value_info(f"in{n}", TensorProto.FLOAT, [batch, 3, side, side])
        for n in range(inputs)
    ]
    made = helper.make_tensor_value_info(
        "out", TensorProto.FLOAT, [batch, len(channels), side, side]
    )
    chosen = numpy_helper.from_array(np.array(channels, np.int64), "chosen")
    nodes = [
        helper.make_node("Gather", ["in0", "chosen"], ["channel"], axis=1),
        helper.make_node(operator, ["channel"], ["out"]),
    ]
    graph = helper.make_graph(nodes, "net", given, [made], [chosen])
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=9), file)
    return file
