"""The what-if app: `epplan app` serves it. It arranges what `topologies` and `planner` say, and decides nothing."""
