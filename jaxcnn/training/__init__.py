"""Training whole networks backward without autodiff; optax does the updates."""
