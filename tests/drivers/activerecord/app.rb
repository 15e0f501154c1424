# ActiveRecord: the table's name is the view's, and since a view has no primary key, the model names it.
require "active_record"

ActiveRecord::Base.establish_connection(
  adapter: "postgresql", host: ENV["PGHOST"], port: ENV["PGPORT"], username: ENV["PGUSER"], password: ENV["PGPASSWORD"],
  database: ENV["PGDATABASE"]
)

module Shown
  def to_s = "#{name} #{ssn || 'none'} #{born.iso8601}"
  def medical = "visit #{notes['visits'] + 1}, allergies #{notes['allergies'].join(' and ')}"
end

class Patient < ActiveRecord::Base
  include Shown
  self.table_name = "decrypted_patients"
  self.primary_key = "id"
end

class Card < ActiveRecord::Base # to read
  include Shown
  self.table_name = "decrypted_cards"
  self.primary_key = "code"
end

# The tables below the views, for insert_all and upsert_all: Rails looks for the unique index. It can't see the types there.
class Stored < ActiveRecord::Base
  self.abstract_class = true
  attribute :ssn, :string
  attribute :born, :date
  attribute :notes, :json
end

class StoredPatient < Stored
  self.table_name = "patients"
end

class StoredCard < Stored
  self.table_name = "cards"
end

ada = Patient.create!(name: "Ada", ssn: "078-05-1120", born: Date.new(1815, 12, 10), notes: { visits: 3, allergies: ["nuts", "Pfefferminzöl"] })
grace = Patient.create!(name: "Grace", ssn: "219-09-9999", born: Date.new(1906, 12, 9), notes: { visits: 0, allergies: [] })
edsger = Patient.create!(name: "Edsger", ssn: "457-55-5462", born: Date.new(1930, 5, 11), notes: { visits: 1, allergies: [] })
puts "inserted: #{ada.id} #{grace.id} #{edsger.id}"
ada = Patient.find(ada.id)
today = Time.now - ada.created_at < 86_400
puts "read: #{ada}, #{ada.medical}, created #{today ? 'today' : "at #{ada.created_at}"}"

ada.update!(ssn: "078-05-1121")
puts "one field: #{ada.reload}"
ada.update!(name: "Ada Lovelace")
puts "another column: #{ada.reload}"
ada.update!(ssn: nil)
puts "NULL: #{ada.reload}"
deleted = Patient.where(name: "Grace").delete_all
puts "deleted: #{deleted}, left: #{Patient.count}"

StoredPatient.insert_all!((1..50).map do |n|
  { name: format("Patient %02d", n), ssn: format("100-00-%04d", n), born: Date.new(1950 + n, 1, 1), notes: { visits: n, allergies: [] } }
end)
puts "bulk: #{Patient.count}"
puts "by name: #{Patient.order(:name).limit(3).pluck(:name).join(', ')}"
Patient.transaction do
  ada.update!(ssn: "000-00-0000")
  Patient.create!(name: "Grace")
  raise ActiveRecord::Rollback
end
puts "rolled back: #{Patient.count}, #{ada.reload}"

page = Patient.order(:name).limit(10).offset(20).to_a
puts "page: #{page.first.name} #{page.first.ssn} to #{page.last.name} #{page.last.ssn}"
found = Patient.find_by!(ssn: "100-00-0007").name
puts "by an encrypted field: #{found}, born from 1990 on: #{Patient.where(born: Date.new(1990, 1, 1)..).count}"

[["upsert", "300-00-0001", 0], ["upsert again", "300-00-0002", 1]].each do |title, ssn, visits|
  StoredCard.upsert({ code: "b", name: "Barbara", ssn: ssn, born: Date.new(1928, 11, 7), notes: { visits: visits, allergies: ["dust"] } })
  card = Card.find("b")
  puts "#{title}: #{card}, #{card.medical}"
end
