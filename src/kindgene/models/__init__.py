"""Plain dense backbones. They know nothing of the method, and import torch and diffusers alone."""
