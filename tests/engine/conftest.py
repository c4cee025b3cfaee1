import gc

import pytest


@pytest.fixture(scope="package", autouse=True)
def _small_heap():
    """DeepSpeed collects garbage many times while it is built: a quarter of a second each with all libraries loaded."""
    import deepspeed  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
