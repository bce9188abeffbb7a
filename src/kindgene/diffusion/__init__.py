"""The diffusion process: the path from data to noise, the loss along it, the sampler that walks back."""
