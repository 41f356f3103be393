// Times Cedar's own engine, as WebAssembly, on the workloads of the Cedar paper: for each app given it writes the medians
// in nanoseconds of a call with the entities of one hierarchy of n = 50, and of a call without entities. Policies and
// schema are parsed beforehand. What a call takes is in its time: the library has no other way in than one JSON text with request
// and entities, which it parses, and from which it gathers who is in whom.
//
//   node cedar_wasm_bench.cjs PACKAGE WORKLOADS APP...
'use strict';
const fs = require('fs');
const path = require('path');
const [folder, workloads, ...apps] = process.argv.slice(2);
const cedar = require(path.join(folder, 'nodejs', 'cedar_wasm.js'));
const read = (name) => fs.readFileSync(path.join(workloads, name), 'utf8');

const median = (calls) => {
  const took = [];
  for (const call of [...calls, ...calls]) {
    const began = process.hrtime.bigint();
    call();
    took.push(Number(process.hrtime.bigint() - began));
  }
  took.splice(0, calls.length); // the first round warms up
  return took.sort((a, b) => a - b)[took.length >> 1];
};

for (const app of apps) {
  const entities = JSON.parse(read(`data/${app}-n50-s0.entities.json`));
  const requests = JSON.parse(read(`data/${app}-n50-s0.requests.json`)).slice(0, 50);
  const decisions = read(`data/${app}-n50-s0.decisions`);
  for (const parsed of [
    cedar.preparsePolicySet(app, { staticPolicies: read(`${app}.cedar`) }),
    cedar.preparseSchema(app, JSON.parse(read(`${app}.cedarschema.json`))),
  ])
    if (parsed.type !== 'success') throw new Error(JSON.stringify(parsed));
  const decide = (request, of) => {
    const answer = cedar.statefulIsAuthorized({
      ...request,
      preparsedPolicySetId: app,
      preparsedSchemaName: app, // where the groups of actions are
      validateRequest: false,
      entities: of,
    });
    if (answer.type !== 'success') throw new Error(JSON.stringify(answer));
    return answer.response.decision === 'allow';
  };
  requests.forEach((request, i) => {
    if (decide(request, entities) !== (decisions[i] === '1')) throw new Error(`${app}: request ${i} is decided wrongly`);
  });
  const whole = median(requests.map((request) => () => decide(request, entities)));
  const bare = median(requests.map((request) => () => decide(request, [])));
  process.stdout.write(`${app} ${whole} ${bare}\n`);
}
