// Lets Cedar's own engine, as WebAssembly, answer: for each line of the input, a function's name, a space and its
// argument as JSON, it writes a line with the answer.
//
//   node cedar_peer.cjs FOLDER < calls > answers     FOLDER is the package @cedar-policy/cedar-wasm
'use strict';
const path = require('path');
const readline = require('readline');
const cedar = require(path.join(process.argv[2], 'nodejs', 'cedar_wasm.js'));

// The library takes its argument through JSON.stringify. A line is JSON already, and its integers may be larger than
// those a Number holds.
class Line {
  constructor(text) {
    this.text = text;
  }
}
const stringify = JSON.stringify;
JSON.stringify = (value, ...more) => (value instanceof Line ? value.text : stringify(value, ...more));

const answer = (line) => {
  const space = line.indexOf(' ');
  try {
    return cedar[line.slice(0, space)](new Line(line.slice(space + 1)));
  } catch (error) {
    return { type: 'threw', errors: [{ message: String(error) }] };
  }
};

readline
  .createInterface({ input: process.stdin, crlfDelay: Infinity })
  .on('line', (line) => process.stdout.write(stringify(answer(line)) + '\n'));
