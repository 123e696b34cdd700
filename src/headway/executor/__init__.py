"""Computing a step: the model, its KV cache on the device, attention over it, sampling.

This package owns everything that is a tensor, and the thread its steps run on. It learns of requests through `Batch`
alone, answers with `StepResult` alone, and never sees or touches scheduling state. torch is imported here and nowhere
above; `base`, `simulated` and `model_files` do without it.

    base.py            the contract
    model_files.py     what a model's files say of it
    loader.py          the weights, and the proof that the model runs on our attention
    transformers.py    the executor: a batch in, a result out
    device_thread.py   the threads that run steps                transfer.py     copies that nobody waits for
    decode_graphs.py   steps of decodes as one launch            kv_budget.py    how many blocks there is room for

    attention.py           attention over the paged cache        kv_tensors.py   its memory
    attention_plan.py      which tokens see which slots of it
    attention_backend.py   what computes it: torch, or
    decode_kernel.py         a compiled kernel for CPUs, or
    flashinfer_attention.py  FlashInfer on CUDA, after           attention_proof.py

    sampling_state.py  how each slot samples, and its history    sampler.py      the mathematics of it
    simulated.py       an executor without a model
"""
