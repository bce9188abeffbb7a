"""The colours of all pictures."""

BLUE, ORANGE, GREEN, GREY = "#1f5fa8", "#d9662b", "#2d8a57", "#8a8a8a"
