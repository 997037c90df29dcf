"""What the forwards of a model's modules become.

projection.py   linear, activation              lora.py    linear with adapters beside it
parts.py        embedding, norm, angles, head   layer.py   attention, MLP, layer
model.py        the decoder, and the model with its head
experts.py      an MLP of experts, its router   balance.py the loss that keeps them evenly used

Every module is called as a module, so that hooks, sharding and checkpointing around it keep
working; its parameters are read by its own forward, or by its parent's where nothing watches it.
"""
