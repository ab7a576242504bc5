"use strict";
// Draws every figure of the page from its specification. Expressions are interpreted (ast), because the page allows no
// script that is made of text.
const specifications = JSON.parse(document.getElementById("specifications").textContent);
const options = {
  mode: "vega-lite",
  renderer: "svg",
  ast: true,
  actions: false,
  tooltip: { theme: "custom" },
  loader: { load: () => Promise.reject(new Error("this page loads nothing")) },
};
const drawn = [...document.querySelectorAll("[data-figure]")].map((place) =>
  vegaEmbed(place, specifications[place.dataset.figure], options).catch((error) => {
    place.textContent = "This figure could not be drawn; its numbers are in the table.";
    console.error(place.dataset.figure, error);
  }),
);
Promise.all(drawn).then(() => document.documentElement.setAttribute("data-drawn", String(drawn.length)));
