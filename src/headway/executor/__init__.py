"""Computing a step: the model, its KV cache on the device, attention over it, sampling.

This package owns every tensor, and the thread on which steps run. Batches tell it about requests, and it answers with
step results; it never sees scheduling state. torch is imported here and in no package below; `base` and `simulated` do
without it.

    base.py                  the contract
    loader.py                the model: its weights, our attention in it, the proof that it says the same
    weights.py               all weights of a checkpoint, and none that is made up or left over
    model_proof.py           a comparison of the model with our attention and with its own
    packed_forward.py        a forward of many sequences in one row
    empty_cache.py           the length of a cache, for models that take positions from it
    transformers_executor.py the executor: a batch in, a result out
    device_thread.py         the threads that run steps
    decode_graphs.py         steps of decodes as one launch
    transfer.py              copies between host and device, without waiting
    kv_budget.py             the number of blocks that fit into memory
    kv_tensors.py            the memory of the KV cache
    packed_linear.py         linear layers with weights packed for oneDNN
    model_head.py            from hidden states to logits, for a few tokens at a time
    prompt_logprobs.py       log-probabilities of prompts, in pieces of bounded size
    prompt_runs.py           which positions of prompts a step is asked to judge
    made_up_logprobs.py      log-probabilities on a device that computes nothing

    attention.py             attention over the paged KV cache
    attention_plan.py        which tokens of a step see which places of the KV cache
    attention_backend.py     chooses one of three ways to compute attention: torch, or
    decode_kernel.py           a compiled kernel for CPUs, or
    flashinfer_attention.py    FlashInfer on CUDA, checked by
    attention_proof.py         a comparison with torch

    sampling_state.py        how each slot samples, and its history
    sampler.py               the mathematics of sampling
    simulated.py             an executor without a model
"""
