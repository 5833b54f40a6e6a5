"""Server of an artifact, with OpenAI's interface: requests over HTTP are read together on one session."""
