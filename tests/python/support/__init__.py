"""What the tests share: a gateway of their own, tokens, and connections that misbehave."""
