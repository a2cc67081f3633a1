"""What is known of GPUs before anything was measured: step times, memory, list prices (config/gpus.yaml).

The prior of predictions, the constants of simulated engines, and what `check` warns by. What an instance really does is learnt
elsewhere.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from gateway.config.quantities import SOME, Bytes, ConfigModel, Money, Name, Rule
from gateway.config.shipped import shipped

Milliseconds = Annotated[float, Rule(strict=True, ge=0, le=10**5)]


class StepTimes(ConfigModel):
    """`T_step[ms] = a + b * sequences + c * context_tokens / 1000 + d * prefill_tokens_in_step / 1000`."""

    a: Milliseconds
    b: Milliseconds
    c: Milliseconds
    d: Milliseconds

    def step_s(self, sequences: int = 1, context_tokens: float = 0, prefill_tokens: float = 0) -> float:
        """One step, seconds."""
        return (self.a + self.b * sequences + self.c * context_tokens / 1000 + self.d * prefill_tokens / 1000) / 1000

    @property
    def typical_per_s(self) -> float:
        """Requests of a typical length (3,600 prompt and 850 output tokens, the mean of the mission's profiles) a second, one by one."""
        return 1.0 / self.idle_e2e_s(3600, 850)

    def idle_ttft_s(self, prompt_tokens: int) -> float:
        """The first token of a request that is alone."""
        return self.step_s(1, prompt_tokens, prompt_tokens)

    def idle_itl_s(self, prompt_tokens: int, output_tokens: int) -> float:
        """The mean gap of a request that is alone, its context half grown."""
        return self.step_s(1, prompt_tokens + output_tokens / 2)

    def idle_e2e_s(self, prompt_tokens: int, output_tokens: int) -> float:
        """The whole of a request that is alone."""
        return self.idle_ttft_s(prompt_tokens) + max(output_tokens - 1, 0) * self.idle_itl_s(prompt_tokens, output_tokens)


class Gpu(ConfigModel):
    """One kind of GPU. `steps` by engine configuration; fp16 is the default one."""

    name: str = ""
    aliases: tuple[Name, ...] = ()
    memory_bytes: Bytes
    usd_per_hour: Money
    steps: Annotated[dict[Name, StepTimes], SOME]

    def step_times(self, engine_config: str = "") -> StepTimes | None:
        """Of the one named in `engine_config` (`w8`, `vllm-w4`; fp16 when it names none); None when it does not fit or is unknown."""
        words = engine_config.lower().replace("-", " ").replace("_", " ").replace(",", " ").split()
        for word in words:
            if word in ("fp16", "bf16", "w16"):
                return self.steps.get("fp16")
            if word in ("w8", "fp8", "int8") or word in ("w4", "awq", "gptq", "int4"):
                return self.steps.get("w8" if word in ("w8", "fp8", "int8") else "w4")
        return self.steps.get("fp16")


class Gpus(ConfigModel):
    """All of config/gpus.yaml."""

    reference_parameters_billion: float
    gpus: dict[Name, Gpu]

    def find(self, name: str) -> Gpu | None:
        """By name or alias, whatever the case (`a100`, `A100-80`, `NVIDIA-H100`, `H100-SXM`); None when unknown."""
        wanted = name.upper().removeprefix("NVIDIA").lstrip("- ")
        for candidate in (wanted, wanted.split("-")[0]):
            for known, gpu in self.gpus.items():
                if candidate and candidate in (known.upper(), *(alias.upper() for alias in gpu.aliases)):
                    return gpu
        return None


# Somebody's API: who else is served there is hidden, so no batch of ours is in the times.
REMOTE_API = StepTimes(a=15.0, b=0.0, c=0.0, d=60.0)


@cache
def shipped_gpus() -> Gpus:
    """The table that comes with the gateway."""
    from gateway.config.document import plain_yaml
    from gateway.config.reading import read_as

    path = shipped("gpus.yaml")
    data: Any = plain_yaml(path)
    for name, gpu in data["gpus"].items():
        gpu["name"] = name
    return read_as(Gpus, data, path.parent)
