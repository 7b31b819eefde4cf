"""Preparing texts, chats, images and ready batches for the model."""
