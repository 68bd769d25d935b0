"""Pure decisions: facts and configuration in, frozen plans out."""
