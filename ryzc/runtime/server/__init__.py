"""An OpenAI-compatible server. Only this room needs FastAPI; running a bundle does not.

A request's way: :mod:`gate` lets it in, its surface (:mod:`openai_chat`, :mod:`openai_completions`, :mod:`responses`,
:mod:`anthropic`) reads the body, :mod:`conversation` makes a prompt of it, the engine answers in tokens,
:mod:`reply` tells thoughts, text and tool calls apart, and the surface writes them in its own shape.
"""
