"""The paper in torch. Imports neither Kedro nor any other part of the project but its parameters and helpers."""
