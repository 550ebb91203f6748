"""A request's sampling fields as the engine takes them."""

from __future__ import annotations

from typing import Any

from ryzc.runtime.sampling import SamplingParams
from ryzc.runtime.server.errors import wrong
from ryzc.runtime.server.fields import SamplingFields
from ryzc.runtime.server.models import Loaded

_SAME = ("temperature", "top_p", "top_k", "min_p", "typical_p", "presence_penalty", "frequency_penalty")


def sampling(fields: SamplingFields, model: Loaded) -> SamplingParams:
    """What the request says; where it says nothing, the bundle's ``generation_config.json``, then ryzc's defaults.

    Raises:
        ApiError, UsageError: a value makes no sense.
    """
    values: dict[str, Any] = dict(model.defaults)
    values |= {name: getattr(fields, name) for name in _SAME if getattr(fields, name) is not None}
    for given in (fields.repetition_penalty, fields.repeat_penalty):
        if given is not None:
            values["repetition_penalty"] = given
    if (penalty := values.pop("repetition_penalty", None)) is not None:
        values["repeat_penalty"] = penalty
        if fields.repetition_penalty is not None and fields.repeat_last_n is None:
            values["repeat_last_n"] = -1  # vLLM's field of that name looks at all tokens
    if fields.repeat_last_n is not None:
        values["repeat_last_n"] = fields.repeat_last_n
    if values.get("top_k", 0) < 0:
        values["top_k"] = 0
    if fields.seed is not None:
        values["seed"] = fields.seed % (1 << 64)
    if fields.logit_bias:
        values["logit_bias"] = _bias(fields.logit_bias, model.vocab_size)
    return SamplingParams(**values)


def _bias(given: dict[str, float], vocab_size: int) -> dict[int, float]:
    bias = {}
    for name, value in given.items():
        if not (name.isascii() and name.isdigit() and int(name) < vocab_size):
            raise wrong("logit_bias", f"'logit_bias' names {name!r}; token ids are 0 to {vocab_size - 1}")
        if not -100 <= value <= 100:
            raise wrong("logit_bias", f"a bias of {value} is not possible; choose -100 to 100")
        bias[int(name)] = float(value)
    return bias
