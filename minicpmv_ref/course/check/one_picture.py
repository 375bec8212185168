"""Lesson 00: one picture, end to end."""

from minicpmv_ref.config import v2_0, v2_5, v2_6
from minicpmv_ref.slicing import plan_slices

from .cases import Case, exercise


@exercise
def picture_bytes():
    for config, size in [(v2_6, (448, 448)), (v2_6, (640, 480)), (v2_5, (640, 480)), (v2_0, (1344, 1344))]:
        llm = config.llm
        per_token = 2 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_width * 2
        tokens = plan_slices(size, config.slicing).visual_tokens(config.resampler.num_queries)
        yield Case((size, config), per_token * tokens)
