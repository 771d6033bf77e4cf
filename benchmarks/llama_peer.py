"""llama.cpp's side of `decode.py` and `serve.py`: requests come as JSON lines on stdin, an answer to each goes out.

Needs nothing but llama-cpp-python and numpy, so that it can live in an environment of its own. llama.cpp is called at
its lowest level: tokens go in as arrays, the likeliest next one is found by numpy.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from typing import Any

import llama_cpp as llama
import numpy as np


def file_type(kind: str) -> int:
    """llama.cpp's number of a file's type, such as ``Q4_K_M``."""
    found: int = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind}")
    return found


def quantize(source: str, target: str, kind: str, threads: int = 0) -> dict[str, Any]:
    """Packs a file anew."""
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize, parameters.nthread = file_type(kind), True, threads
    if llama.llama_model_quantize(source.encode(), target.encode(), parameters):
        raise RuntimeError(f"llama.cpp cannot pack {source} as {kind}")
    return {}


class Model:
    """A file, and the contexts it was run in, which keep their memory."""

    def __init__(self, path: str, threads: int) -> None:
        parameters = llama.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.threads = threads
        self.model = llama.llama_model_load_from_file(path.encode(), parameters)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self.words = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self._contexts: dict[tuple[int, int, bool, int], Any] = {}

    def context(self, length: int, sequences: int, flash: bool, ubatch: int) -> Any:
        """An empty one with fp16 keys and values, for so many texts of so many tokens each."""
        key = (length, sequences, flash, ubatch)
        if key not in self._contexts:
            parameters = llama.llama_context_default_params()
            # In steps of 256: llama.cpp's attention without flash is slower at other lengths.
            parameters.n_ctx = sequences * (-(-length // 256) * 256)
            parameters.n_batch, parameters.n_ubatch = parameters.n_ctx, min(ubatch, parameters.n_ctx)
            parameters.n_seq_max = sequences
            parameters.n_threads = parameters.n_threads_batch = self.threads
            parameters.flash_attn_type = int(flash)  # 1 enabled, 0 disabled
            parameters.type_k = parameters.type_v = 1  # GGML_TYPE_F16
            parameters.no_perf = True
            found = llama.llama_init_from_model(self.model, parameters)
            if not found:
                raise RuntimeError("llama.cpp makes no context so long")
            self._contexts[key] = found
        context = self._contexts[key]
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        return context

    def run(self, ids: list[list[int]], new: int, flash: bool, ubatch: int) -> dict[str, Any]:
        """Seconds until all prompts are read, and of ``new`` steps of all texts after that; and their tokens."""
        count = len(ids)
        context = self.context(max(map(len, ids)) + new + 1, count, flash, ubatch)
        batch = llama.llama_batch_init(sum(map(len, ids)), 0, 1)
        try:
            # A warm-up: threads started, buffers touched.
            self._decode(context, batch, _filled(batch, [(7, s, 0, True) for s in range(count)]))
            llama.llama_memory_clear(llama.llama_get_memory(context), True)
            rows = [(t, s, at, at == len(text) - 1) for s, text in enumerate(ids) for at, t in enumerate(text)]
            asked = _filled(batch, rows)
            begin = time.perf_counter()
            tokens = self._decode(context, batch, asked)
            middle = time.perf_counter()
            made = [tokens]
            for step in range(new):
                rows = [(t, s, len(ids[s]) + step, True) for s, t in enumerate(tokens)]
                tokens = self._decode(context, batch, _filled(batch, rows))
                made.append(tokens)
            end = time.perf_counter()
        finally:
            llama.llama_batch_free(batch)
        return {"prefill": middle - begin, "decode": end - middle, "tokens": [list(t) for t in zip(*made)]}

    def _decode(self, context: Any, batch: Any, asked: list[int]) -> list[int]:
        """The likeliest token after each row of the batch that is asked for."""
        if llama.llama_decode(context, batch):
            raise RuntimeError("llama.cpp has no room for these tokens")
        return [
            int(np.ctypeslib.as_array(llama.llama_get_logits_ith(context, i), (self.words,)).argmax()) for i in asked
        ]


def _filled(batch: Any, rows: list[tuple[int, int, int, bool]]) -> list[int]:
    """Puts rows (token, text, position, whether it is asked for) into a batch; the numbers of those that are."""
    batch.n_tokens = len(rows)
    for i, (token, sequence, position, asked) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.logits[i] = token, position, asked
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
    return [i for i, row in enumerate(rows) if row[3]]


def main() -> None:
    # Whatever llama.cpp prints goes elsewhere: stdout has answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    silent = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(silent, ctypes.c_void_p())
    llama.llama_backend_init()
    model: Model | None = None
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        try:
            if what == "quantize":
                answer = quantize(**request)
            elif what == "load":
                model, answer = Model(**request), {}
            else:
                assert model is not None
                answer = model.run(**request)
        except (RuntimeError, AttributeError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
