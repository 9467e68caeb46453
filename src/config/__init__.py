"""The configuration: one schema, checked key by key; what foreign checkpoints were trained with, as records."""

from src.config.keys import (
    COCO_CLASSES,
    Backbone,
    BoxCoder,
    Config,
    ConfigError,
    Proposals,
    RcnnTest,
    Roi,
    RoiLayer,
    backbone_channels,
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

__all__ = [
    "COCO_CLASSES",
    "Backbone",
    "BoxCoder",
    "Config",
    "ConfigError",
    "Proposals",
    "RcnnTest",
    "Roi",
    "RoiLayer",
    "add_config_arguments",
    "backbone_channels",
    "config_from_arguments",
    "describe_keys",
    "load_config",
    "load_nameless_config",
    "parse_overrides",
    "save_config",
]
