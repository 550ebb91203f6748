"""The model as an ONNX graph: building and reading it (:mod:`.nodes`), the meaning of our own operators
(:mod:`.ops`), evaluating it (:mod:`.oracle`) and printing it (:mod:`.text`).

Two forms are held in an ``onnx_ir.Model``. The *semantic graph*, written by :mod:`ryzc.models`, maps
``tokens`` and ``positions`` (int64 [T], one sequence, nothing cached) to ``logits`` (f32 [T, V]). The
*final graph*, made from it by :mod:`ryzc.passes`, is one step of the runtime: several sequences over
pages of keys and values, logits only for the rows asked for.
"""
