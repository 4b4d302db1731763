"""The ways in which a step can run on a CPU, as the options that ask for them."""

PATHS = {
    "reference": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "default": {},
}
