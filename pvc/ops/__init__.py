"""What the user's commands do: resolve, launch, find and talk to clusters."""
