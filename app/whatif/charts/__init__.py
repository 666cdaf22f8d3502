"""Figures from what the planner returns: functions from results to Plotly figures, which know nothing of Streamlit."""
