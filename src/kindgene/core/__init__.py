"""The method itself: components, the class gate, the tailor bank, gated layers. Imports torch alone."""
