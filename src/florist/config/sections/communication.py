"""The traffic of a configuration."""

from typing import Annotated, Literal

from pydantic import ByteSize, Field, model_validator

from florist.config.communication import CODEC_NAMES, PRESETS
from florist.config.sections.section import Section, fraction_of, one_of


class CommunicationSection(Section):
    """``[communication]``: how updates and broadcasts travel."""

    preset: Annotated[str, one_of(PRESETS)] | None = None
    """Settings by one name, which the other keys change. ``compact``, the default of florist, sends 4 bits both ways at
    tau 0.7, and sends later what it cuts. ``plain``, the default of the other methods, sends float32
    and forgets what it cuts. ``paper`` is plain, and local adapters start fresh."""
    download: Annotated[str, one_of(CODEC_NAMES)] = "float32"
    """How the numbers of a broadcast travel."""
    upload: Annotated[str, one_of(CODEC_NAMES)] = "float32"
    """How the numbers of an upload travel. The parameters that travel whole have 16 bits at least."""
    upload_tau: Annotated[float, fraction_of("the energy")] | None = None
    """The fraction of its energy that a client uploads in each module; all of it by default."""
    upload_budget: Annotated[ByteSize, Field(gt=0)] | None = None
    """The bytes of a client's factors in a round, as ``"200kB"``: the most energy that fits is uploaded."""
    feedback: bool | Literal["server", "clients"] = False
    """Whether the server and the clients keep what they did not send, and send it later; or only one of them."""
    flush: bool = True
    """Whether the final adapter has what the server still holds back at the end."""

    @model_validator(mode="after")
    def _consistent(self) -> "CommunicationSection":
        if self.upload_tau is not None and self.upload_budget is not None:
            raise ValueError(
                f"upload_tau = {self.upload_tau} and upload_budget = {self.upload_budget} contradict each other: each "
                "says how much a client uploads; set one"
            )
        return self

    @property
    def feedback_at_server(self) -> bool:
        """Whether the server keeps what it did not send."""
        return self.feedback is True or self.feedback == "server"

    @property
    def feedback_at_clients(self) -> bool:
        """Whether clients keep what they did not send."""
        return self.feedback is True or self.feedback == "clients"
