"""Images and models, or arrays of others, to activation stores.

Importing this package costs nothing; ``model`` and ``extract`` import PyTorch, which takes seconds.
"""
