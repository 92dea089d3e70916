"""How much each sample contributes."""
