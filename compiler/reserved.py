"""Names that a spec cannot give: those of the language's steps, and those that Python and torch need for themselves."""

from __future__ import annotations

import keyword

from crate_dsl.compiler.steps import operators

#: What looks like a step and is a form of the language: it has a body, or takes a stage.
FORMS = ("repeat", "residual", "each", "copy", "frozen", "ema", "transpose", "inverse")

#: Names that an `nn.Module`, or the module that is generated for a network, has for itself.
_TORCH = (
    "T add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches "
    "eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu "
    "load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters "
    "register_backward_hook register_buffer register_forward_hook register_forward_pre_hook "
    "register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook "
    "register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook "
    "register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict "
    "to to_empty train training type xpu zero_grad accept batch draw graph layers net self"
)


def is_step(name: str) -> bool:
    """Whether a name is a step of the language: arithmetic and parts of steps have no name in it."""
    operator = operators().get(name)
    return name in FORMS or (operator is not None and operator.kind not in ("expression", "lowered"))


def is_python(name: str) -> bool:
    """Whether a name would break a torch module that has it as an attribute, or code that has it as a variable."""
    return name in _TORCH.split() or keyword.iskeyword(name) or name.startswith("_")
