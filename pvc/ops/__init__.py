"""The user side: launch, attach, report."""
