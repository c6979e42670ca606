"""lm-evaluation-harness with our attention: ``python -m adamas.eval lm_eval --model adamas --model_args pretrained=...,budget=128``.

The harness knows models by name only after the module that registers them is imported; importing this one does it, for programs
of one's own as well. What ``--model_args`` holds beside the arguments of the harness's own class are settings.
"""

from __future__ import annotations

from typing import Any

import torch

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError:
    raise SystemExit("adamas.eval: lm-evaluation-harness is missing: pip install 'lm_eval[hf]'") from None

from .. import settings
from ..transformers import enable


@register_model("adamas")
class AdamasLM(HFLM):  # type: ignore[misc]
    """A model of transformers on a CPU. Every row of a text whose likelihood is asked for is sparse (it is one prompt, which would be
    dense otherwise); of what is generated, the rows that are decoded, unless ``rows="all"``."""

    def __init__(self, pretrained: Any, **more: Any) -> None:
        own = {one["name"]: more.pop(one["name"]) for one in settings() if one["name"] in more}
        super().__init__(pretrained, **{"device": "cpu", **more})
        self.enabled = enable(self.model, **own)

    def _model_call(self, *args: Any, **more: Any) -> torch.Tensor:
        before, self.enabled.every_row = self.enabled.every_row, True
        try:
            return super()._model_call(*args, **more)
        finally:
            self.enabled.every_row = before


def main(arguments: list[str]) -> None:
    """The harness's own command."""
    import sys

    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
