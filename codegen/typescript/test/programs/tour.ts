/* The tour, on the runtime that runs this; says what it found, as JSON. */
import * as sdk from "@wrenn/sdk";
import { apiKey, url } from "../support/stack.js";
import { tour } from "../support/tour.js";

console.log(JSON.stringify(await tour(sdk, url, apiKey)));
