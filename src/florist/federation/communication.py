"""How updates and broadcasts travel in a federation: through codecs, cut, and with what was held back before.

The same steps serve both engines. Without a codec nothing is touched, and the bits are those of the aggregator.
"""

import math
from dataclasses import dataclass, replace

from florist.compression.codecs import FloatCodec
from florist.compression.feedback import Compression, ModuleAccount
from florist.compression.packed import PackedAdapter
from florist.compression.residual import NOTHING_OWED, Residual
from florist.compression.saved import send_parameters
from florist.factors import AdapterState
from florist.federation.admission import LARGEST_NORM
from florist.federation.local_init import change
from florist.rounds import (
    NO_ADAPTER,
    Broadcast,
    Certificate,
    ClientUpdate,
    ClientWork,
    ModuleCertificate,
    SavedParameters,
    saved_bytes,
)


@dataclass(frozen=True, slots=True, eq=False)
class SentUpdate:
    """An update as a client sends it.

    Attributes:
        update: what arrives, decoded, with the bytes that travelled.
        packed: what travels of the factors; None where they travel as they are.
        owed: what the client holds back now.
    """

    update: ClientUpdate
    packed: PackedAdapter | None
    owed: Residual


@dataclass(frozen=True, slots=True, eq=False)
class SentBroadcast:
    """A broadcast as the server sends it.

    Attributes:
        broadcast: what arrives, decoded, with a certificate of what was really sent.
        shared: what travels of the shared adapter; None where it travels as it is.
        continued: what travels of the continued adapter, to a client of the largest rank; None likewise.
        owed: what the server holds back now.
    """

    broadcast: Broadcast
    shared: PackedAdapter | None
    continued: PackedAdapter | None
    owed: Residual


@dataclass(frozen=True, slots=True)
class Communication:
    """What becomes of all that travels. None in a direction leaves it untouched, in float32.

    Args:
        upload: the compression of a client's factors.
        download: the compression of the server's. Where it cuts, the aggregator has to hand over the whole sum.
        saved_upload: how the parameters that travel whole go up.
        saved_download: how they go down.
    """

    upload: Compression | None = None
    download: Compression | None = None
    saved_upload: FloatCodec | None = None
    saved_download: FloatCodec | None = None

    @property
    def uploads_changes(self) -> bool:
        """Whether clients upload what training changed, which is what can be cut and sent later."""
        return self.upload is not None and self.upload.recuts

    @property
    def largest_norm(self) -> float:
        """The largest norm of an update, of its halves and of their product, that a broadcast of it can carry.

        A weighted sum of such updates is no larger. Half of what the codec takes leaves room for what is held back.
        """
        return LARGEST_NORM if self.download is None else min(LARGEST_NORM, self.download.codec.largest / 2)

    @property
    def largest_number(self) -> float:
        """The largest number of a parameter that travels whole that a broadcast can carry."""
        return math.inf if self.saved_download is None else self.saved_download.largest / 2

    def sent_update(
        self,
        update: ClientUpdate,
        owed: Residual,
        work: ClientWork,
        *,
        given: AdapterState = NO_ADAPTER,
        max_rank: int | None = None,
    ) -> SentUpdate:
        """What a client sends of a trained update, and what it holds back.

        Args:
            update: as it was trained.
            owed: what the client held back before.
            work: what the method asks of clients.
            given: the part of the global adapter that the client trained on from.
            max_rank: the largest rank that the client may send.

        Raises:
            NonFiniteUpdateError: a number is not finite or does not fit the codec; names the module.
            InvalidUpdateError, IncompatibleAdaptersError: what was held back has other shapes.
        """
        adapter, packed, held = update.adapter, None, NO_ADAPTER
        if self.upload is not None:
            new = change(adapter, given) if self.uploads_changes else adapter
            sent = self.upload(new, owed.adapter, max_rank=max_rank, trained=work.trained)
            adapter, packed, held = sent.decoded, sent.packed, sent.held_back
        saved, rounding = self._saved(update.saved_parameters, owed, self.saved_upload, self.upload)
        nbytes = packed.nbytes if packed is not None else work.sent_bytes(adapter)
        residual = Residual(held, rounding)
        return SentUpdate(
            replace(
                update,
                adapter=adapter,
                saved_parameters=saved,
                sent_bytes=nbytes + saved_parameter_bytes(saved, self.saved_upload),
                held_back=residual.norm,
            ),
            packed,
            residual,
        )

    def sent_broadcast(self, broadcast: Broadcast, owed: Residual, work: ClientWork) -> SentBroadcast:
        """What the server sends of an aggregated broadcast, and what it holds back.

        Args:
            broadcast: as it was aggregated; with feedback, the exact sum.
            owed: what the server held back before.
            work: what the method asks of clients.

        Raises:
            NonFiniteUpdateError: a number does not fit the codec; names the module.
        """
        if self.download is None and self.saved_download is None:
            return SentBroadcast(broadcast, None, None, NOTHING_OWED)
        shared, continued, held = broadcast.shared, broadcast.continued, NO_ADAPTER
        packed_shared = packed_continued = None
        modules = dict(broadcast.certificate.modules)
        if self.download is not None:
            if shared or owed.adapter:
                sent = self.download(shared, owed.adapter)
                shared, packed_shared, held = sent.decoded, sent.packed, sent.held_back
                for name, account in sent.accounts.items():
                    modules[name] = self._certified(modules.get(name), account, sent.decoded, name)
            if continued:
                again = Compression(self.download.codec)(continued, trained=work.broadcast)
                continued, packed_continued = again.decoded, again.packed
                for name, account in again.accounts.items():
                    modules[name] = _with_codec_error(modules[name], account.codec_error)
        saved, rounding = self._saved(broadcast.saved_parameters, owed, self.saved_download, self.download)
        bytes_out = (
            (packed_shared.nbytes if packed_shared is not None else shared.nbytes)
            + (packed_continued.nbytes if packed_continued is not None else work.continued_bytes(continued))
            + saved_parameter_bytes(saved, self.saved_download)
        )
        certificate = Certificate(modules, broadcast.certificate.bytes_in, bytes_out)
        return SentBroadcast(
            Broadcast(shared, certificate, continued, saved), packed_shared, packed_continued, Residual(held, rounding)
        )

    def _certified(
        self, before: ModuleCertificate | None, account: ModuleAccount, decoded: AdapterState, name: str
    ) -> ModuleCertificate:
        """The certificate of what was really sent of a module. One that is due alone was in no update."""
        shape, rank = decoded.specs[name].shape, decoded.specs[name].rank
        if before is not None and self.download is not None and not self.download.recuts:
            return _with_codec_error(before, account.codec_error)
        norm, error = account.due, math.hypot(account.held_back, account.let_go)
        return ModuleCertificate(
            shape=shape,
            rank=rank,
            input_rank=before.input_rank if before is not None else 0,
            energy_kept=1.0 - (error / norm) ** 2 if norm else 1.0,
            norm=norm,
            error=error,
            absent_from=before.absent_from if before is not None else (),
            codec_error=account.codec_error,
            held_back=account.held_back,
        )

    def _saved(
        self, values: SavedParameters, owed: Residual, codec: FloatCodec | None, compression: Compression | None
    ) -> tuple[SavedParameters, SavedParameters]:
        if codec is None:
            return values, {}
        feedback = compression is not None and compression.feedback is not None
        sent = send_parameters(values, owed.saved_parameters, codec, feedback=feedback)
        return sent.decoded, sent.held_back


def saved_parameter_bytes(parameters: SavedParameters, codec: FloatCodec | None) -> int:
    """The bytes of parameters that travel whole, through a codec or as they are."""
    if codec is None:
        return saved_bytes(parameters)
    return sum(tensor.numel() * codec.dtype.itemsize for tensor in parameters.values())


def upload_bytes_of(update: ClientUpdate, work: ClientWork) -> int:
    """The bytes that an update travelled in: those that its client counted, or those of an update as it is."""
    if update.sent_bytes is not None:
        return update.sent_bytes
    return work.sent_bytes(update.adapter) + saved_bytes(update.saved_parameters)


def _with_codec_error(module: ModuleCertificate, codec_error: float) -> ModuleCertificate:
    error = math.hypot(module.error, codec_error)
    kept = 1.0 - (error / module.norm) ** 2 if module.norm else module.energy_kept
    return replace(module, error=error, energy_kept=kept, codec_error=codec_error)
