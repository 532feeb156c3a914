// Asks a V2 server through @grpc/grpc-js: node client.js SCENARIO ADDRESS REPOSITORY. Ends with 1 and says why when the
// server does not answer as it should.
"use strict";

const assert = require("node:assert");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [scenario, address, repository] = process.argv.slice(2);
const PATIENCE_MS = 60_000;
const MOST = 64 << 20;

const loaded = grpc.loadPackageDefinition(
  loader.loadSync("protos/inference/v2/predict.proto", {
    includeDirs: [repository],
    keepCase: true,
    longs: String,
    enums: String,
    defaults: true,
    oneofs: true,
  }),
);

const HEALTH = grpc.loadPackageDefinition(
  loader.fromJSON({
    nested: {
      grpc: {
        nested: {
          health: {
            nested: {
              v1: {
                nested: {
                  Request: { fields: { service: { type: "string", id: 1 } } },
                  Response: { fields: { status: { type: "Status", id: 1 } } },
                  Status: { values: { UNKNOWN: 0, SERVING: 1, NOT_SERVING: 2 } },
                  Health: {
                    methods: {
                      Check: { requestType: "Request", responseType: "Response" },
                      Watch: { requestType: "Request", responseType: "Response", responseStream: true },
                    },
                  },
                },
              },
            },
          },
        },
      },
    },
  }, { enums: String, defaults: true }),
).grpc.health.v1.Health;

function open(options = {}, Service = loaded.inference.GRPCInferenceService) {
  return new Service(address, grpc.credentials.createInsecure(), {
    "grpc.max_receive_message_length": MOST,
    "grpc.max_send_message_length": MOST,
    "grpc.use_local_subchannel_pool": 1,
    ...options,
  });
}

async function withClient(run, options, Service) {
  const client = open(options, Service);
  try {
    await run(client);
  } finally {
    client.close();
  }
}

function ask(client, method, request, { metadata = new grpc.Metadata(), within = PATIENCE_MS, held } = {}) {
  return new Promise((resolve, reject) => {
    const call = client[method](request, metadata, { deadline: Date.now() + within }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
    held?.push(call);
  });
}

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("no error");
}

function infer(model, id, raw, datatype = "FP32") {
  return {
    model_name: model,
    id,
    inputs: [{ name: "INPUT", datatype, shape: [1, 4] }],
    raw_input_contents: [raw],
  };
}

const row = (number) => Buffer.from(new Float32Array([number, 1, 2, 3]).buffer);

function text(size) {
  const big = Buffer.alloc(size);
  for (let index = 0; index < size; index++) big[index] = (Math.imul(index, index) >>> 20) & 0x7f;
  const pieces = [];
  for (const each of [big, Buffer.alloc(0), Buffer.from("x"), Buffer.from("é")]) {
    const length = Buffer.alloc(4);
    length.writeUInt32LE(each.length);
    pieces.push(length, each);
  }
  return Buffer.concat(pieces);
}

function checkEcho(answer, id, raw) {
  assert.strictEqual(answer.id, id);
  assert.strictEqual(answer.raw_output_contents.length, 1);
  assert.ok(raw.equals(answer.raw_output_contents[0]), `${raw.length} bytes came back as others`);
}

async function echo(client, number, options) {
  const id = String(number);
  checkEcho(await ask(client, "ModelInfer", infer("ident", id, row(number)), options), id, row(number));
}

function metadata() {
  const sent = new grpc.Metadata();
  sent.set("triton_grpc_error", "true");
  sent.add("some-bin", Buffer.from(Array.from({ length: 256 }, (_, index) => index)));
  sent.add("some-bin", Buffer.alloc(0));
  sent.set("some-text", 'a, b;c="d"');
  for (let index = 0; index < 40; index++) sent.set(`name-${index}`, "value");
  return sent;
}

function received(call) {
  const answers = [];
  return new Promise((resolve, reject) => {
    call.on("data", (answer) => answers.push(answer));
    call.on("error", reject);
    call.on("end", () => resolve(answers));
  });
}

const scenarios = {
  unary: () =>
    withClient(async (client) => {
      assert.strictEqual((await ask(client, "ServerLive", {})).live, true);
      assert.strictEqual((await ask(client, "ModelMetadata", { name: "ident" })).name, "ident");
      await echo(client, 7);
    }),

  stream: () =>
    withClient(async (client) => {
      const call = client.ModelStreamInfer(new grpc.Metadata(), { deadline: Date.now() + PATIENCE_MS });
      const coming = received(call);
      for (let index = 0; index < 300; index++) {
        call.write(infer(index === 150 ? "nope" : "ident", String(index), row(index)));
      }
      call.end();
      const answers = await coming;
      assert.strictEqual(answers.length, 300);
      answers.forEach((answer, index) => {
        assert.strictEqual(answer.infer_response.id, String(index));
        assert.strictEqual(answer.error_message !== "", index === 150);
        if (index !== 150) checkEcho(answer.infer_response, String(index), row(index));
      });
    }),

  metadata: () =>
    withClient(async (client) => {
      await echo(client, 1, { metadata: metadata() });
      const call = client.ModelStreamInfer(metadata(), { deadline: Date.now() + PATIENCE_MS });
      const coming = failure(received(call));
      call.write(infer("nope", "1", row(1)));
      assert.strictEqual((await coming).code, grpc.status.NOT_FOUND);
    }),

  deadline: () =>
    withClient(async (client) => {
      const calls = Array.from({ length: 8 }, () =>
        failure(ask(client, "ModelInfer", infer("slow", "", row(0)), { within: 50 })),
      );
      for (const error of await Promise.all(calls)) assert.strictEqual(error.code, grpc.status.DEADLINE_EXCEEDED);
      await echo(client, 1);
    }),

  cancel: () =>
    withClient(async (client) => {
      const held = [];
      const calls = Array.from({ length: 8 }, () =>
        failure(ask(client, "ModelInfer", infer("slow", "", row(0)), { held })),
      );
      await echo(client, 1);
      for (const call of held) call.cancel();
      for (const error of await Promise.all(calls)) assert.strictEqual(error.code, grpc.status.CANCELLED);
      await echo(client, 2);
    }),

  large: () =>
    withClient(async (client) => {
      const wire = text(8 << 20);
      const calls = Array.from({ length: 3 }, () => ask(client, "ModelInfer", infer("text", "1", wire, "BYTES")));
      for (const answer of await Promise.all(calls)) checkEcho(answer, "1", wire);
    }),

  // Needs a server that packs its answers.
  gzip: () =>
    withClient(
      async (client) => {
        const wire = text(1 << 20);
        checkEcho(await ask(client, "ModelInfer", infer("text", "1", wire, "BYTES")), "1", wire);
        await echo(client, 1);
      },
      { "grpc.default_compression_algorithm": grpc.compressionAlgorithms.gzip },
    ),

  parallel: async () => {
    const clients = [open(), open(), open()];
    const numbers = Array.from({ length: 1500 }, (_, index) => index);
    await Promise.all(numbers.map((number) => echo(clients[number % clients.length], number)));
    for (const client of clients) client.close();
  },

  // Pings many times while slow calls run one after the other, on one connection.
  keepalive: () =>
    withClient(
      async (client) => {
        for (let call = 0; call < 2; call++) {
          checkEcho(await ask(client, "ModelInfer", infer("slow", "1", row(0))), "1", row(0));
        }
      },
      { "grpc.keepalive_time_ms": 50, "grpc.keepalive_permit_without_calls": 1 },
    ),

  // Calls until standard input ends.
  load: () =>
    withClient(async (client) => {
      let over = false;
      process.stdin.on("end", () => (over = true)).resume();
      const caller = async () => {
        for (let number = 0; !over; number++) await echo(client, number);
      };
      await Promise.all(Array.from({ length: 8 }, caller));
    }),

  error: () =>
    withClient(async (client) => {
      const name = "модель 名前 ☃ 100%";
      const error = await failure(ask(client, "ModelInfer", infer(name, "", row(0))));
      assert.strictEqual(error.code, grpc.status.NOT_FOUND);
      assert.strictEqual(error.details, `Request for unknown model: '${name}' is not found`);
      const none = await failure(
        new Promise((resolve, reject) =>
          client.makeUnaryRequest("/nowhere.Service/None", (it) => it, (it) => it, Buffer.alloc(0), (told, answer) =>
            told ? reject(told) : resolve(answer),
          ),
        ),
      );
      assert.strictEqual(none.code, grpc.status.UNIMPLEMENTED);
    }),

  health: () =>
    withClient(
      async (client) => {
        assert.strictEqual((await ask(client, "Check", {})).status, "SERVING");
        const watch = client.Watch({});
        watch.on("error", () => {}); // it is cancelled below
        const first = await new Promise((resolve) => watch.once("data", resolve));
        assert.strictEqual(first.status, "SERVING");
        watch.cancel();
      },
      {},
      HEALTH,
    ),
};

scenarios[scenario]().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
