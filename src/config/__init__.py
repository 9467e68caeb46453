"""The configuration: one schema, checked key by key; what foreign checkpoints were trained with, as records."""

from src.config.backbones import backbone_channels, backbone_strides
from src.config.keys import (
    COCO_CLASSES,
    DETECTORS,
    Backbone,
    BoxCoder,
    Config,
    ConfigError,
    Proposals,
    RcnnTest,
    Roi,
    RoiLayer,
)
from src.config.reading import (
    add_config_arguments,
    config_from_arguments,
    describe_keys,
    load_config,
    load_nameless_config,
    parse_overrides,
    save_config,
)
from src.config.views import at_scales

__all__ = [
    "COCO_CLASSES",
    "DETECTORS",
    "Backbone",
    "BoxCoder",
    "Config",
    "ConfigError",
    "Proposals",
    "RcnnTest",
    "Roi",
    "RoiLayer",
    "add_config_arguments",
    "at_scales",
    "backbone_channels",
    "backbone_strides",
    "config_from_arguments",
    "describe_keys",
    "load_config",
    "load_nameless_config",
    "parse_overrides",
    "save_config",
]
