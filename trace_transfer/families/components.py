"""The vocabulary of components: the functional parts of a model at which two families meet.

A rules file may use these names and no others, so that every family can be paired with every other one. What is like
an MLP is in its components: experts as principals, shared experts as satellites. What stands between the residual
stream and queries, keys or values (latent projections and their norms) is a satellite of what it leads to.
"""

from __future__ import annotations

from types import MappingProxyType

# Inside a layer, in the order in which the residual stream passes through them.
LAYER_COMPONENTS = MappingProxyType(
    {
        "norm.pre_attention": "normalises the residual stream before it enters attention",
        "attention.query": "residual stream → queries",
        "attention.key": "residual stream → keys",
        "attention.value": "residual stream → values",
        "attention.output": "attended values → residual stream",
        "norm.post_attention": "normalises what attention adds, before it is added",
        "norm.pre_mlp": "normalises the residual stream before it enters the MLP",
        "mlp.router": "residual stream → how much each expert counts",
        "mlp.gate": "residual stream → the activated factor of a gated MLP",
        "mlp.up": "residual stream → the MLP's inner width",
        "mlp.down": "the MLP's inner width → residual stream",
        "norm.post_mlp": "normalises what the MLP adds, before it is added",
    }
)

# Outside the layers.
OUTSIDE_COMPONENTS = MappingProxyType(
    {
        "embedding": "token → residual stream",
        "embedding.position": "learned position → residual stream",
        "norm.final": "normalises the residual stream before the head",
        "head": "residual stream → logits",
    }
)
