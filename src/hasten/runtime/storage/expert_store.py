"""Running a mixture of experts whose experts stay on storage: read while attention computes, kept under a RAM budget.

Each expert is one contiguous bundle (gate, up, down transposed) of a safetensors file, so one read brings it, in fp32
or in the paper's Q4_0 (`hasten.runtime.storage.expert_forms`), and is held in memory as the file has it.
SmallThinker's router reads the residual before attention: the experts of a layer are known, and asked for, before its
attention begins (arXiv 2507.20984, section 3). The least recently used bundles make room.
"""

from __future__ import annotations

import mmap
import os
import time
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from hasten.errors import HastenError
from hasten.files import write_aside
from hasten.models.language.smallthinker import HeadPredictor, SmallThinkerLM
from hasten.nn.attention import LayerCache
from hasten.nn.reglu_experts import Expert, route
from hasten.runtime.storage.expert_forms import expert_form
from hasten.runtime.storage.tensor_file import Throttle, tensor_places

Key = tuple[int, int]
_FORM = "form"  # in a file's metadata, beside the bundles' checksums
# Replaces the router's choice: (layer, tokens' chosen experts) to those to use; for replaying recorded routes.
Replay = Callable[[int, Tensor], Tensor]


def write_experts(model: SmallThinkerLM, path: str | Path, form: str = "fp32") -> None:
    """Writes all experts of a model as bundles (3, inner, width), each with a checksum.

    Args:
        model: whose experts.
        path: of the file.
        form: ``fp32``, or ``q4_0``, as SmallThinker was run: 18 bytes for 32 values.

    Raises:
        HastenError: another form, a width that it cannot hold, or the file cannot be written.
    """
    kept = expert_form(form)
    tensors, sums = {}, {_FORM: form}
    for number, layer in enumerate(model.blocks):
        for index, expert in enumerate(layer.block_sparse_moe.experts):
            assert isinstance(expert, Expert)
            weights = (expert.gate.weight, expert.up.weight, expert.down.weight.t())
            plain = torch.stack([w.detach().float() for w in weights])
            kept.stored(tuple(plain.shape))  # before anything is made of them
            bundle = kept.encode(plain).contiguous()
            name = f"{number}.{index}"
            tensors[name] = bundle
            sums[name] = str(zlib.crc32(bundle.numpy().tobytes()))
    write_aside(Path(path), save(tensors, metadata=sums), "the experts")


class ExpertFile:
    """Bundles in a file, read one by one past the page cache.

    ``form`` and ``shape`` say how the bundles are kept, and the shape (3, inner, width) of what they hold.

    Args:
        path: what `write_experts` wrote.
        bandwidth: B/s that reads are held to; None for what the storage does.
        drop: have the system forget the file before each read, so that every read comes from storage.

    Raises:
        HastenError: the file is missing, cut short, or no file of experts.
    """

    def __init__(self, path: str | Path, *, bandwidth: float | None = None, drop: bool = True) -> None:
        self.path, self._drop = Path(path), drop
        try:
            self._file = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise HastenError(f"cannot read {path}: {error.strerror}") from None
        weakref.finalize(self, os.close, self._file)
        try:
            tensors, metadata = tensor_places(self._file)
            # Files of before have no form, and are plain.
            self.form = expert_form(metadata.pop(_FORM, "fp32"))
            self._sums = {_key(n): int(c) for n, c in metadata.items()}
            self._places: dict[Key, tuple[int, int]] = {}
            shapes = set()
            for name, place in tensors.items():
                shape = place.shape
                if place.dtype != self.form.dtype or len(shape) != 3 or shape[0] != 3 or min(shape) < 1:
                    raise ValueError(f"expert {name} has a wrong shape")
                shape = self.form.shape(shape)
                if place.nbytes != self.form.nbytes(shape):
                    raise ValueError(f"expert {name} has a wrong size")
                shapes.add(shape)
                self._places[_key(name)] = (place.begin, place.nbytes)
            if len(shapes) != 1 or set(self._sums) != set(self._places):
                raise ValueError("its experts differ")
            self.shape = shapes.pop()
        except (HastenError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise HastenError(f"{path} is not a whole file of experts ({error}): write it again") from None
        if drop:
            # Pages that were written and not yet stored cannot be forgotten.
            os.fsync(self._file)
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead of what is asked for
        self._throttle = Throttle(bandwidth)

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Key]:
        """(layer, expert) of every bundle."""
        return iter(self._places)

    @property
    def bundle_bytes(self) -> int:
        """Bytes of a bundle, in the file as in memory."""
        return self.form.nbytes(self.shape)

    def read(self, key: Key) -> Tensor:
        """One bundle: (3, inner, width) in fp32, or the bytes of the file's form.

        Raises:
            HastenError: the storage fails, or what it gives is not what was written.
        """
        at, size = self._places[key]
        begun = time.perf_counter()
        # Read where it stays: a copy on the way would be memory beyond the budget.
        data = bytearray(size)
        try:
            if self._drop:
                # Whole pages: those that a range covers in part would stay.
                first = at - at % mmap.PAGESIZE
                os.posix_fadvise(self._file, first, at + size + mmap.PAGESIZE - first, os.POSIX_FADV_DONTNEED)
            done = os.preadv(self._file, [data], at)
        except OSError as error:
            raise HastenError(f"reading expert {key} from {self.path} failed ({error.strerror})") from None
        if done != size or zlib.crc32(data) != self._sums[key]:
            raise HastenError(f"expert {key} in {self.path} is damaged: write the file again")
        self._throttle.wait(begun, size)
        return self.form.held(data, self.shape)


def _key(name: str) -> Key:
    layer, expert = name.split(".")
    return int(layer), int(expert)


@dataclass
class Counts:
    """What an engine did: bundles asked for, found resident, read; seconds of attention, experts and waiting."""

    asked: int = 0
    resident: int = 0
    read: int = 0
    attention: float = 0.0
    experts: float = 0.0
    stalled: float = 0.0


class ExpertCache:
    """Least-recently-used bundles under a hard budget, reads in the background included.

    Args:
        file: where they come from.
        budget: bytes for bundles.
        readers: reads under way at once.

    Raises:
        HastenError: a budget below one bundle.
    """

    def __init__(self, file: ExpertFile, budget: float, readers: int = 2) -> None:
        self.file = file
        self.capacity = int(budget // file.bundle_bytes)
        if self.capacity < 1:
            raise HastenError(
                f"a budget of {budget:.0f} bytes holds no expert ({file.bundle_bytes} bytes each): raise it"
            )
        self._held: OrderedDict[Key, Future[Tensor]] = OrderedDict()
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="experts")
        weakref.finalize(self, self._pool.shutdown, False)
        self.counts = Counts()
        self.most_held = 0

    def ask(self, keys: Sequence[Key]) -> list[Key]:
        """Begins to read what is not there, as far as the budget goes; returns the keys, resident ones first.

        What is asked for now is not thrown out to make room for the rest of it.
        """
        wanted = list(dict.fromkeys(keys))
        resident = [k for k in wanted if k in self._held]
        for key in resident:
            self._held.move_to_end(key)
        missing = [k for k in wanted if k not in self._held]
        self.counts.asked += len(wanted)
        self.counts.resident += len(resident)
        pinned = set(wanted)
        for key in missing:
            if len(self._held) >= self.capacity and not self._evict(pinned):
                break
            self._begin(key)
        return [*resident, *missing]

    def nearest(self, keys: Sequence[Key]) -> Key:
        """The first that is here, else the first that is on its way, else the first."""
        coming = [k for k in keys if k in self._held]
        return next((k for k in coming if self._held[k].done()), coming[0] if coming else keys[0])

    def get(self, key: Key) -> Tensor:
        """A bundle, waited for if need be; let go of the one before, or both are in memory.

        Raises:
            HastenError: it cannot be read. It is forgotten, so that another try reads again.
        """
        if key not in self._held:
            if len(self._held) >= self.capacity:
                self._evict(set())
            self._begin(key)
        future = self._held[key]
        self._held.move_to_end(key)
        waits = not future.done()
        begun = time.perf_counter()
        try:
            return future.result()
        except BaseException:
            del self._held[key]
            raise
        finally:
            if waits:
                self.counts.stalled += time.perf_counter() - begun

    def _begin(self, key: Key) -> None:
        self._held[key] = self._pool.submit(self.file.read, key)
        self.counts.read += 1
        self.most_held = max(self.most_held, len(self._held))

    def _evict(self, pinned: set[Key]) -> bool:
        for key in self._held:
            if key not in pinned:
                # A read under way is waited for: its memory is within the budget too.
                begun = time.perf_counter()
                self._held.pop(key).exception()
                self.counts.stalled += time.perf_counter() - begun
                return True
        return False


class ExpertEngine:
    """A SmallThinker model whose experts come through a cache.

    Args:
        model: gives everything but the experts; its own are not used, and may be on the meta device.
        cache: of the same model's experts.
        prefetch: ask for a layer's experts before its attention; otherwise when they are needed.
        replay: replaces the routers' choices.
        predictor: for a single token, computes the output head's likely rows alone; the others get minus infinity.

    Raises:
        HastenError: the file holds another model's experts, or the budget is below what one token uses in a layer.
    """

    def __init__(
        self,
        model: SmallThinkerLM,
        cache: ExpertCache,
        *,
        prefetch: bool = True,
        replay: Replay | None = None,
        predictor: HeadPredictor | None = None,
    ) -> None:
        config, self.predictor = model.config, predictor
        self.model, self.cache, self.prefetch, self.replay = model.eval(), cache, prefetch, replay
        if cache.file.shape != (3, config.inner, config.width) or len(cache.file) != config.layers * config.experts:
            raise HastenError(f"{cache.file.path} holds the experts of another model: write it again")
        if cache.capacity < config.used:
            raise HastenError(
                f"a budget of {cache.capacity} experts is below the {config.used} a token uses in one layer: raise it"
            )
        if prefetch and not config.early:
            raise HastenError("this model routes after attention: its experts cannot be known before (prefetch=False)")
        if config.activation != "relu":
            raise HastenError("the engine runs experts with ReLU gates")

    @torch.inference_mode()
    def forward(self, ids: Tensor, state: list[LayerCache] | None = None, *, logits_to_keep: int = 0) -> Tensor:
        """As the model's own forward, for ids (batch, length)."""
        inner, counts = self.model.model, self.cache.counts
        x = inner.embed_tokens(ids)
        for number, layer in enumerate(self.model.blocks):
            moe = layer.block_sparse_moe
            chosen = None
            if layer.early:
                chosen = self._choose(number, moe.primary_router(x))
                if self.prefetch:
                    self._ask(number, chosen[1])
            begun = time.perf_counter()
            x = x + layer.self_attn(layer.input_layernorm(x), None if state is None else state[number])
            h = layer.post_attention_layernorm(x)
            counts.attention += time.perf_counter() - begun
            if chosen is None:
                chosen = self._choose(number, moe.primary_router(h))
            stalled, begun = counts.stalled, time.perf_counter()
            x = x + self._experts(number, h.reshape(-1, h.shape[-1]), *chosen).reshape(h.shape)
            counts.experts += time.perf_counter() - begun - (counts.stalled - stalled)
        h = inner.norm(x)[:, -logits_to_keep:]
        if self.predictor is not None and h.shape[:2] == (1, 1):
            return self.predictor.logits(h[0, 0], self.model.lm_head.weight)[None, None]
        return self.model.lm_head(h)

    __call__ = forward

    def _choose(self, number: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        config = self.model.config
        flat = logits.reshape(-1, logits.shape[-1])
        weights, chosen = route(flat, config.used, config.softmax)
        if self.replay is not None:
            chosen = self.replay(number, chosen)
            best = flat.gather(1, chosen)
            scores = torch.softmax(best, -1) if config.softmax else torch.sigmoid(best)
            weights = scores / scores.sum(-1, keepdim=True)
        return weights, chosen

    def _ask(self, number: int, chosen: Tensor) -> list[Key]:
        return self.cache.ask([(number, int(e)) for e in chosen.unique()])

    def _experts(self, number: int, h: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        if not self.prefetch:
            order = self._ask(number, chosen)
        else:
            # Asked for before; those that are here by now go first.
            order = [(number, int(e)) for e in chosen.unique()]
        form, shape = self.cache.file.form, self.cache.file.shape
        out: dict[int, Tensor] = {}
        waiting = order
        while waiting:
            key = self.cache.nearest(waiting)
            bundle = self.cache.get(key)
            rows, _ = (chosen == key[1]).nonzero(as_tuple=True)
            if len(rows) == 1:
                out[key[1]] = form.one_token(bundle, shape, h[rows[0]])[None]
            else:
                out[key[1]] = form.tokens(bundle, shape, h[rows])
            del bundle  # the next may need its place
            waiting = [k for k in waiting if k != key]
        # Summed in the order of choice, so that no figure depends on which expert came first.
        total = torch.zeros_like(h)
        for expert in sorted(out):
            rows, slot = (chosen == expert).nonzero(as_tuple=True)
            total = total.index_add(0, rows, weights[rows, slot, None] * out[expert])
        return total
