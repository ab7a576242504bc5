"""How clients are to send their updates, in names and numbers that an assignment can carry."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from florist.compression.codecs import FloatCodec, codec_named
from florist.compression.feedback import Compression, Feedback
from florist.errors import ConfigurationError, InvalidUpdateError
from florist.federation.communication import Communication
from florist.ranks import ByteBudget, EnergyThreshold, RankRule

_WHOLE, _TAU, _BUDGET = "whole", "tau", "budget"
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class UploadTerms:
    """What a client has to know of the communication.

    Attributes:
        codec: the name of the codec of the factors; empty where they travel as they are.
        cut: how the factors are cut: ``"tau"``, ``"budget"``, or ``"whole"`` where they are not.
        limit: the fraction of the energy for ``"tau"``, the bytes for ``"budget"``, and 0 for ``"whole"``.
        feedback: whether the client keeps what it does not send.
        rank_factor: the bound on the rank of what it keeps; see `Feedback`.
        saved_codec: the name of the codec of the saved parameters; empty where they travel as they are.
    """

    codec: str
    cut: str
    limit: _Amount
    feedback: bool
    rank_factor: _Amount
    saved_codec: str

    @classmethod
    def of(cls, communication: Communication) -> "UploadTerms":
        """Return the terms of a communication.

        Raises:
            ConfigurationError: clients cannot be told its upload by names and numbers.
            UnknownCodecError: its codec has a name that clients do not know.
        """
        upload, saved = communication.upload, communication.saved_upload
        rule = upload.rank_rule if upload is not None else None
        feedback = upload.feedback if upload is not None else None
        cut, limit = _WHOLE, 0.0
        if isinstance(rule, EnergyThreshold):
            cut, limit = _TAU, rule.tau
        elif isinstance(rule, ByteBudget):
            cut, limit = _BUDGET, float(rule.nbytes)
        terms = cls(
            codec=upload.codec.name if upload is not None else "",
            cut=cut,
            limit=limit,
            feedback=feedback is not None,
            rank_factor=feedback.rank_factor if feedback is not None else 0.0,
            saved_codec=saved.name if saved is not None else "",
        )
        if terms.communication != Communication(upload=upload, saved_upload=saved):
            raise ConfigurationError(
                "expected an upload that is cut by EnergyThreshold, or by ByteBudget with the bytes of its codec, and "
                f"packed by a codec of florist's own, got {upload}; clients cannot be told of another"
            )
        return terms

    @property
    def communication(self) -> Communication:
        """The upload of the communication, from which the terms were made.

        Raises:
            UnknownCodecError: this version has no codec of that name.
            InvalidUpdateError: this version does not know the cut, or the saved parameters have a codec that rounds
                them to a few bits.
            ConfigurationError: the limit is none.
        """
        saved = codec_named(self.saved_codec) if self.saved_codec else None
        if saved is not None and not isinstance(saved, FloatCodec):
            raise InvalidUpdateError(
                f"expected saved parameters in a floating-point type, got {self.saved_codec!r}; client and server need "
                "the same version of florist"
            )
        if not self.codec:
            return Communication(saved_upload=saved)
        codec = codec_named(self.codec)
        rules: dict[str, RankRule | None] = {_WHOLE: None}
        if self.cut == _TAU:
            rules[_TAU] = EnergyThreshold(self.limit)
        elif self.cut == _BUDGET:
            rules[_BUDGET] = ByteBudget(int(self.limit), codec.itemsize, 2 * codec.row_overhead)
        if self.cut not in rules:
            raise InvalidUpdateError(
                f"expected a cut of {_WHOLE}, {_TAU}, {_BUDGET}, got {self.cut!r}; client and server need the same "
                "version of florist"
            )
        feedback = Feedback(self.rank_factor) if self.feedback else None
        return Communication(Compression(codec, rules[self.cut], feedback), saved_upload=saved)


AS_THEY_ARE = UploadTerms.of(Communication())
"""Updates travel as they are, in float32."""
