// OpenAI's client for Node: a stream, and an answer that must be JSON.
import OpenAI from "openai";

const model = process.env.RYZC_MODEL ?? "smollm2";
const client = new OpenAI({
  baseURL: process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:8080/v1",
  apiKey: process.env.OPENAI_API_KEY ?? "none",
});

const stream = await client.chat.completions.create({
  model,
  messages: [{ role: "user", content: "What is the capital of France? Answer in one sentence." }],
  max_tokens: 64,
  stream: true,
});
process.stdout.write("stream: ");
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
}

const answer = await client.chat.completions.create({
  model,
  messages: [{ role: "user", content: "Ada is 36 years old. Give her name and age." }],
  max_tokens: 100,
  response_format: {
    type: "json_schema",
    json_schema: {
      name: "person",
      schema: {
        type: "object",
        properties: { name: { type: "string" }, age: { type: "integer" } },
        required: ["name", "age"],
        additionalProperties: false,
      },
    },
  },
});
const person = JSON.parse(answer.choices[0].message.content);
console.log(`\nperson: ${person.name}, ${person.age}`);
