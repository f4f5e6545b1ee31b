"""The folder of the compiled libraries; hp_norm_plugin.library loads them."""
