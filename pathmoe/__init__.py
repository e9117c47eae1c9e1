"""PathMoE: train, compare and look inside path-constrained Mixture-of-Experts language models.

Importing it makes the model known to transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from pathmoe.config import PathMoEConfig
from pathmoe.determinism import call_math_functions_once
from pathmoe.model import PathMoEForCausalLM, PathMoEModel

__all__ = ["PathMoEConfig", "PathMoEForCausalLM", "PathMoEModel"]

call_math_functions_once()

AutoConfig.register("pathmoe", PathMoEConfig)
AutoModel.register(PathMoEConfig, PathMoEModel)
AutoModelForCausalLM.register(PathMoEConfig, PathMoEForCausalLM)
