"""The rules, one file a family: forward directly above backward, the derivation above both."""
